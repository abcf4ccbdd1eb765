"""A finished job's files as responses: one file, all of them in one tar, the report."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller
from app.artifacts.archive import archive_digest, archive_pieces
from app.artifacts.sending import check_stored, send_artifact
from app.db.engine import release
from app.deps import Service
from app.jobs.queries import artifact_named, artifacts_of, get_job
from app.web import problems
from app.web.problems import Problem
from app.web.ranges import decide, etag
from core.ledger.states import FINISHED, JobStatus

REPORTS = {"application/json": "quality_report.json", "text/html": "quality_report.html"}
# The page is ours, but names in it come from models: nothing in it may run or load.
SANDBOX = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox allow-popups"


async def send_file(
    request: Request, caller: Caller, session: AsyncSession, deps: Service, *, job_id: str, name: str
) -> Response:
    """Raises Problem 404, and as ``send_artifact``."""
    await get_job(session, tenant=caller.tenant, job_id=job_id)
    artifact = await artifact_named(session, job_id=job_id, name=name)
    await release(session)
    filename = quote(artifact.name.rsplit("/", 1)[-1])
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{filename}"}
    return await send_artifact(request, deps, artifact, headers)


async def send_archive(
    request: Request, caller: Caller, session: AsyncSession, deps: Service, *, job_id: str
) -> Response:
    """Raises Problem: 404 or 409 without files, and as ``decide``."""
    job = await get_job(session, tenant=caller.tenant, job_id=job_id)
    artifacts = await artifacts_of(session, job_id=job_id)
    if not artifacts:
        kind = problems.NOT_FOUND if job.finished_at else problems.JOB_NOT_FINISHED
        raise Problem(kind, f"job {job_id} is {job.status} and has no artifacts")
    await release(session)
    for artifact in artifacts:
        await check_stored(deps.storage, artifact)
    modified = job.finished_at or job.created_at
    answer = decide(
        request,
        archive_pieces(artifacts, folder=job.id, modified=modified),
        name=f"{job.id}.tar",
        tag=etag(archive_digest(artifacts, folder=job.id, modified=modified)),
        headers={"Content-Disposition": f'attachment; filename="{job.id}.tar"'},
    )
    if isinstance(answer, Response):
        return answer
    return answer.response(request, deps.storage, media_type="application/x-tar")


async def send_report(
    request: Request, caller: Caller, session: AsyncSession, deps: Service, *, job_id: str, media_type: str | None
) -> Response:
    """``media_type``: a key of ``REPORTS``; None: the client accepts neither. Raises Problem: 406 for that, 409 before
    the job's end, 404 when it has no report."""
    job = await get_job(session, tenant=caller.tenant, job_id=job_id)
    if media_type is None:
        raise Problem(problems.NOT_ACCEPTABLE, "the report comes as application/json or text/html")
    if job.status not in FINISHED:
        raise Problem(problems.REPORT_NOT_READY, f"job {job_id} is {job.status}; its layers are at …/layers meanwhile")
    if job.status != JobStatus.SUCCEEDED:
        raise Problem(problems.NOT_FOUND, f"job {job_id} is {job.status} and has no report")
    artifact = await artifact_named(session, job_id=job_id, name=REPORTS[media_type])
    await release(session)
    headers = {"Content-Security-Policy": SANDBOX, "Vary": "Accept"}
    return await send_artifact(request, deps, artifact, headers, by_others=False)
