"""Deleting finished jobs, one or many, and the artifacts of one. ``worker.keeper.removal`` removes the bytes.

A job disappears at once. Files that unfinished forks and jobs of its comparison may reuse stay in storage until those
have ended.
"""

from __future__ import annotations

from sqlalchemy import cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.quotas import StorageMeter
from app.audit.service import Action, actor_of, audit_entry, note
from app.db.pipeline import transaction_of
from app.jobs.queries import artifacts_of, get_job, ids_of_finished
from app.jobs.schemas import Deleted, JobDeletion
from app.web import problems
from app.web.problems import Problem
from core.ledger.states import FINISHED
from core.ledger.tables import StorageRemoval

AT_ONCE = 1000


async def delete_job(session: AsyncSession, *, tenant: str, job_id: str, meter: StorageMeter) -> None:
    """Raises Problem 404, or 409 while the job is queued or runs."""
    job = await get_job(session, tenant=tenant, job_id=job_id, lock=True)
    _check_finished(job_id, job.status)
    await _delete(session, tenant, [job_id], meter)


async def delete_many(session: AsyncSession, *, tenant: str, which: JobDeletion, meter: StorageMeter) -> Deleted:
    """Jobs that have not finished stay."""
    ids = await ids_of_finished(session, tenant=tenant, which=which, limit=AT_ONCE + 1)
    ids_of_deleted = await _delete(session, tenant, ids[:AT_ONCE], meter)
    return Deleted(deleted=ids_of_deleted, has_more=len(ids) > AT_ONCE)


async def delete_artifacts(session: AsyncSession, *, tenant: str, job_id: str, meter: StorageMeter) -> None:
    """The job and its metrics stay. Raises Problem 404, or 409 while the job is queued or runs."""
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
    meter.forget(tenant)


def _check_finished(job_id: str, status: str) -> None:
    if status not in FINISHED:
        raise Problem(problems.JOB_NOT_FINISHED, f"job {job_id} is {status}: cancel it, or wait for its end")


async def _delete(session: AsyncSession, tenant: str, ids: list[str], meter: StorageMeter) -> list[str]:
    if not ids:
        return []
    ids_there = list((await session.scalars(select(func.delete_jobs(tenant, cast(ids, ARRAY(TEXT)))))).all())
    entries = [audit_entry(actor_of(session), Action.JOB_DELETED, job_id, {}) for job_id in ids_there]
    await (await transaction_of(session)).run(*entries)
    meter.forget(tenant)
    return ids_there
