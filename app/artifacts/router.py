"""The files of a finished job: list, download whole or in parts, all in one tar, the report."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from app.artifacts import service
from app.artifacts.schemas import ArtifactList, ArtifactView
from app.artifacts.sending import BINARY
from app.deps import JobsReader, JobsWriter, ServiceDep, SessionDep
from app.jobs import deletion, queries
from app.web import problems
from app.web.negotiation import choose
from app.web.problems import documented

FORMATS = {"json": "application/json", "html": "text/html"}
router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["artifacts"])


@router.get("/artifacts", responses=documented(problems.NOT_FOUND))
async def list_artifacts(job_id: str, caller: JobsReader, session: SessionDep) -> ArtifactList:
    """The files of the checkpoint; empty until the job has succeeded."""
    await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    return ArtifactList(data=[ArtifactView.of(row) for row in await queries.artifacts_of(session, job_id=job_id)])


@router.delete("/artifacts", status_code=204, responses=documented(problems.NOT_FOUND, problems.JOB_NOT_FINISHED))
async def delete_artifacts(job_id: str, caller: JobsWriter, session: SessionDep, deps: ServiceDep) -> None:
    """Remove the files of a finished job. The job stays, with its figures."""
    await deletion.delete_artifacts(session, tenant=caller.tenant, job_id=job_id, meter=deps.meter)


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
    job_id: str, name: str, request: Request, caller: JobsReader, session: SessionDep, deps: ServiceDep
) -> Response:
    """One file of the checkpoint. `ETag` and `Repr-Digest` are its SHA-256; `Range` and conditional requests work."""
    return await service.send_file(request, caller, session, deps, job_id=job_id, name=name)


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
async def archive(job_id: str, request: Request, caller: JobsReader, session: SessionDep, deps: ServiceDep) -> Response:
    """Every file in one tar, in a folder named after the job. The same bytes each time: `Range` works."""
    return await service.send_archive(request, caller, session, deps, job_id=job_id)


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
    deps: ServiceDep,
    format: Annotated[  # noqa: A002 -- the name of the query parameter
        Literal["json", "html"] | None, Query(description="Instead of the `Accept` header.")
    ] = None,
) -> Response:
    """The quality report, for programs (JSON) or for people (HTML)."""
    media_type = (
        FORMATS[format] if format is not None else choose(request.headers.get("accept"), tuple(service.REPORTS))
    )
    return await service.send_report(request, caller, session, deps, job_id=job_id, media_type=media_type)
