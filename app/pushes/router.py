"""``/v1/jobs/{job_id}/pushes``: the files of a job, pushed to repositories of the hub and to buckets."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.deps import JobsReader, PushesWriter, ServiceDep, SessionDep, actor_of
from app.pushes import service
from app.pushes.schemas import NewPush, PushView
from app.web import problems
from app.web.idempotency import IdempotencyKey
from app.web.paging import Page, PageQuery
from app.web.problems import documented

router = APIRouter(prefix="/v1/jobs/{job_id}/pushes", tags=["pushes"])


@router.post(
    "",
    status_code=201,
    response_model=PushView,
    responses=documented(
        problems.NOT_FOUND, *problems.PUSH_REFUSED, problems.NOTHING_TO_PUSH, problems.MALFORMED_REQUEST,
        problems.BODY_TOO_LARGE, *problems.REPEATED,
    ),
)  # fmt: skip
async def create(
    job_id: str,
    new: NewPush,
    request: Request,
    caller: PushesWriter,
    session: SessionDep,
    deps: ServiceDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Push the checkpoint, or an export, to a repository of the hub or into a bucket; a job that has not ended yet as
    soon as it has succeeded. What is there already is not sent again."""
    created = await service.create_push_once(
        session, caller, actor_of(request), deps, job_id=job_id, new=new, key=idempotency_key
    )
    return created.answer(response)


@router.get("", responses=documented(problems.NOT_FOUND, problems.INVALID_CURSOR))
async def list_pushes(
    job_id: str, query: Annotated[PageQuery, Query()], caller: JobsReader, session: SessionDep, deps: ServiceDep
) -> Page[PushView]:
    """Pushes of the job, newest first."""
    return await service.list_pushes(session, tenant=caller.tenant, job_id=job_id, query=query, signer=deps.keyring)


@router.get("/{push_id}", responses=documented(problems.NOT_FOUND))
async def get(job_id: str, push_id: str, caller: JobsReader, session: SessionDep) -> PushView:
    """One push: how far it is, and why the last attempt failed."""
    return await service.view_push(session, tenant=caller.tenant, job_id=job_id, push_id=push_id)


@router.post("/{push_id}/cancel", responses=documented(problems.NOT_FOUND, problems.PUSH_FINISHED))
async def cancel(job_id: str, push_id: str, caller: PushesWriter, session: SessionDep) -> PushView:
    """End it where it stands. Asking again changes nothing."""
    return await service.cancel_push(session, tenant=caller.tenant, job_id=job_id, push_id=push_id)
