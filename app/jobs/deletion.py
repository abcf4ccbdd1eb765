"""Deleting finished jobs, one or many, and the artifacts of one. ``worker.keeper.removal`` removes the bytes.

A job goes from sight at once. What unfinished forks and jobs of its comparison may still take over from it stays in
storage until they have ended.
"""

from __future__ import annotations

from sqlalchemy import cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.service import Action, actor_of, note, noted
from app.db.pipeline import joined
from app.jobs.queries import artifacts_of, get_job, ids_of_finished
from app.jobs.schemas import JobDeletion
from app.web import problems
from app.web.problems import Problem
from core.ledger.states import FINISHED
from core.ledger.tables import StorageRemoval

AT_ONCE = 1000


async def delete_job(session: AsyncSession, *, tenant: str, job_id: str) -> None:
    """Raises Problem 404, or 409 while the job waits or runs."""
    job = await get_job(session, tenant=tenant, job_id=job_id, lock=True)
    _check_finished(job_id, job.status)
    await _delete(session, tenant, [job_id])


async def delete_many(session: AsyncSession, *, tenant: str, wanted: JobDeletion) -> tuple[list[str], bool]:
    """The ids of what was deleted, and whether there is more. Jobs that have not finished stay."""
    found = await ids_of_finished(session, tenant=tenant, wanted=wanted, limit=AT_ONCE + 1)
    return await _delete(session, tenant, found[:AT_ONCE]), len(found) > AT_ONCE


async def delete_artifacts(session: AsyncSession, *, tenant: str, job_id: str) -> None:
    """The job stays, with its figures. Raises Problem 404, or 409 while the job waits or runs."""
    job = await get_job(session, tenant=tenant, job_id=job_id, lock=True)
    _check_finished(job_id, job.status)
    artifacts = await artifacts_of(session, job_id=job_id)
    if not artifacts:
        return
    for artifact in artifacts:
        await session.delete(artifact)
    for attempt in {artifact.attempt for artifact in artifacts}:
        session.add(StorageRemoval(prefix=f"jobs/{job_id}/a{attempt}", tenant=tenant))
    job.artifact_bytes = None
    await note(session, Action.ARTIFACTS_DELETED, job_id, files=len(artifacts))


def _check_finished(job_id: str, status: str) -> None:
    if status not in FINISHED:
        raise Problem(problems.JOB_NOT_FINISHED, f"job {job_id} is {status}: cancel it, or wait for its end")


async def _delete(session: AsyncSession, tenant: str, ids: list[str]) -> list[str]:
    if not ids:
        return []
    deleted = list((await session.scalars(select(func.delete_jobs(tenant, cast(ids, ARRAY(TEXT)))))).all())
    entries = [noted(actor_of(session), Action.JOB_DELETED, job_id, {}) for job_id in deleted]
    await (await joined(session)).run(*entries)
    return deleted
