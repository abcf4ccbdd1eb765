"""``/v1/comparisons``: HTTP only."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.comparisons import service
from app.comparisons.plot import draw
from app.comparisons.schemas import ComparisonView, NewComparison
from app.deps import JobsReader, JobsWriter, NotifierDep, ServiceDep, SessionDep
from app.web import problems
from app.web.idempotency import IdempotencyKey
from app.web.negotiation import choose
from app.web.paging import Page, PageQuery
from app.web.problems import Problem, documented

SVG = "image/svg+xml"
router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])


@router.post(
    "",
    status_code=201,
    response_model=ComparisonView,
    responses=documented(*problems.CREATION_REFUSED),
)
async def create(
    new: NewComparison,
    request: Request,
    caller: JobsWriter,
    session: SessionDep,
    deps: ServiceDep,
    notifier: NotifierDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Queue one job per candidate, all on the same model and rows. Jobs that start later take over the calibration of
    the first."""
    created = await service.submit_comparison(
        request, caller, session, deps, notifier, new=new, idempotency_key=idempotency_key
    )
    return created.answer(response)


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def list_comparisons(
    query: Annotated[PageQuery, Query()], caller: JobsReader, session: SessionDep, deps: ServiceDep
) -> Page[ComparisonView]:
    """Comparisons, newest first."""
    return await service.list_comparisons(session, tenant=caller.tenant, query=query, signer=deps.keyring)


@router.get("/{comparison_id}", responses=documented(problems.NOT_FOUND))
async def get(comparison_id: str, caller: JobsReader, session: SessionDep) -> ComparisonView:
    """A comparison as one table: KL, agreement, bits, bytes, seconds and verdict of every candidate, and
    those that nothing beats."""
    return await service.view_comparison(session, tenant=caller.tenant, comparison_id=comparison_id)


@router.get(
    "/{comparison_id}/plot",
    response_class=Response,
    responses={
        **documented(problems.NOT_FOUND, problems.NOT_ACCEPTABLE),
        200: {"content": {SVG: {"schema": {"type": "string"}}}, "description": "Size against KL, with the frontier."},
    },
)
async def plot(comparison_id: str, request: Request, caller: JobsReader, session: SessionDep) -> Response:
    """Size against quality as a picture (SVG), the frontier drawn through it."""
    view = await service.view_comparison(session, tenant=caller.tenant, comparison_id=comparison_id)
    if choose(request.headers.get("accept"), (SVG,)) is None:
        raise Problem(problems.NOT_ACCEPTABLE, f"a plot comes as {SVG}")
    # Nothing in it runs or is fetched, whoever opens it as a page of its own.
    headers = {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return Response(draw(view), media_type=SVG, headers=headers)


@router.post("/{comparison_id}/cancel", responses=documented(problems.NOT_FOUND))
async def cancel(comparison_id: str, caller: JobsWriter, session: SessionDep) -> ComparisonView:
    """Cancel every job of it that has not ended. Asking again changes nothing."""
    return await service.cancel_comparison(session, tenant=caller.tenant, comparison_id=comparison_id)


@router.delete("/{comparison_id}", status_code=204, responses=documented(problems.NOT_FOUND))
async def delete(comparison_id: str, caller: JobsWriter, session: SessionDep) -> None:
    """Cancel what has not ended and forget the comparison. Its jobs and their results stay."""
    await service.delete_comparison(session, tenant=caller.tenant, comparison_id=comparison_id)
