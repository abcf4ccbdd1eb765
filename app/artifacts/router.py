"""The files of a finished job: list, download whole or in parts, all in one tar, the report."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response

from app.artifacts.archive import archive_digest, archive_pieces
from app.artifacts.ranges import etag
from app.artifacts.schemas import ArtifactList, ArtifactView
from app.artifacts.sending import BINARY, check_stored, decide, send_artifact
from app.db.engine import release
from app.deps import JobsReader, JobsWriter, ServiceDep, SessionDep
from app.jobs import deletion, queries
from app.web import problems
from app.web.negotiation import choose
from app.web.problems import Problem, documented
from core.ledger.states import FINISHED, JobStatus

REPORTS = {"application/json": "quality_report.json", "text/html": "quality_report.html"}
FORMATS = {"json": "application/json", "html": "text/html"}
# The page is ours, but names in it come from models: nothing in it may run or load.
SANDBOX = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox allow-popups"
router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["artifacts"])


@router.get("/artifacts", responses=documented(problems.NOT_FOUND))
async def list_artifacts(job_id: str, caller: JobsReader, session: SessionDep) -> ArtifactList:
    """The files of the checkpoint; empty until the job has succeeded."""
    await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    return ArtifactList(data=[ArtifactView.of(row) for row in await queries.artifacts_of(session, job_id=job_id)])


@router.delete("/artifacts", status_code=204, responses=documented(problems.NOT_FOUND, problems.JOB_NOT_FINISHED))
async def delete_artifacts(job_id: str, caller: JobsWriter, session: SessionDep, parts: ServiceDep) -> None:
    """Remove the files of a finished job. The job stays, with its figures."""
    await deletion.delete_artifacts(session, tenant=caller.tenant, job_id=job_id)
    parts.meter.forget(caller.tenant)


@router.head("/artifacts/{name:path}", include_in_schema=False)
@router.get(
    "/artifacts/{name:path}",
    response_class=Response,
    responses={
        **documented(
            problems.NOT_FOUND,
            problems.PRECONDITION_FAILED,
            problems.RANGE_NOT_SATISFIABLE,
            problems.OBJECT_MISSING,
        ),
        200: BINARY,
        206: {"description": "The bytes of the `Range`.", **BINARY},
        302: {"description": "To the object store, with `QE_REDIRECT_DOWNLOADS`."},
        304: {"description": "The client has it already (`If-None-Match`)."},
    },
)
async def download(
    job_id: str, name: str, request: Request, caller: JobsReader, session: SessionDep, parts: ServiceDep
) -> Response:
    """One file of the checkpoint. `ETag` and `Repr-Digest` are its SHA-256; `Range` and conditional requests work."""
    await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    artifact = await queries.artifact_named(session, job_id=job_id, name=name)
    await release(session)
    filename = quote(artifact.name.rsplit("/", 1)[-1])
    return await send_artifact(
        request, parts, artifact, {"Content-Disposition": f"attachment; filename*=UTF-8''{filename}"}
    )


@router.head("/archive", include_in_schema=False)
@router.get(
    "/archive",
    response_class=Response,
    responses={
        **documented(
            problems.NOT_FOUND,
            problems.JOB_NOT_FINISHED,
            problems.PRECONDITION_FAILED,
            problems.RANGE_NOT_SATISFIABLE,
            problems.OBJECT_MISSING,
        ),
        200: {"content": {"application/x-tar": {}}},
        206: {"description": "The bytes of the `Range`.", "content": {"application/x-tar": {}}},
        304: {"description": "The client has it already (`If-None-Match`)."},
    },
)
async def archive(
    job_id: str, request: Request, caller: JobsReader, session: SessionDep, parts: ServiceDep
) -> Response:
    """Every file in one tar, in a folder named after the job. The same bytes each time: `Range` works."""
    job = await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    artifacts = await queries.artifacts_of(session, job_id=job_id)
    if not artifacts:
        kind = problems.NOT_FOUND if job.finished_at else problems.JOB_NOT_FINISHED
        raise Problem(kind, f"job {job_id} is {job.status} and has no artifacts")
    await release(session)
    for artifact in artifacts:
        await check_stored(parts.storage, artifact)
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
    return answer.response(request, parts.storage, media_type="application/x-tar")


@router.get(
    "/report",
    response_class=Response,
    responses={
        **documented(problems.NOT_FOUND, problems.REPORT_NOT_READY, problems.NOT_ACCEPTABLE),
        200: {"content": {"application/json": {"schema": {"type": "object"}}, "text/html": {}}},
    },
)
async def report(
    job_id: str,
    request: Request,
    caller: JobsReader,
    session: SessionDep,
    parts: ServiceDep,
    format: Annotated[  # noqa: A002 -- the name of the query parameter
        Literal["json", "html"] | None, Query(description="Instead of the `Accept` header.")
    ] = None,
) -> Response:
    """The quality report, for programs (JSON) or for people (HTML)."""
    job = await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    wanted = FORMATS[format] if format is not None else choose(request.headers.get("accept"), tuple(REPORTS))
    if wanted is None:
        raise Problem(problems.NOT_ACCEPTABLE, "the report comes as application/json or text/html")
    if job.status not in FINISHED:
        raise Problem(problems.REPORT_NOT_READY, f"job {job_id} is {job.status}; its layers are at …/layers meanwhile")
    if job.status != JobStatus.SUCCEEDED:
        raise Problem(problems.NOT_FOUND, f"job {job_id} is {job.status} and has no report")
    artifact = await queries.artifact_named(session, job_id=job_id, name=REPORTS[wanted])
    await release(session)
    headers = {"Content-Security-Policy": SANDBOX, "Vary": "Accept"}
    return await send_artifact(request, parts, artifact, headers, by_others=False)
