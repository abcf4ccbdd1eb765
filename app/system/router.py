"""The service itself: health, readiness, metrics, what can be asked for, who works, what problems mean."""

from __future__ import annotations

import hmac

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.deps import AnyCaller, ServiceDep, SessionDep, WorkersReader
from app.jobs.feed import FeedDep
from app.system import service
from app.system.readiness import check_readiness
from app.system.schemas import Health, ProblemEntry, Readiness, Schemes, WorkerList
from app.web import problems
from app.web.problems import CATALOGUE, Problem, documented

router = APIRouter()


@router.get("/healthz", tags=["service"])
async def healthz() -> Health:
    """The process answers. Says nothing about what it depends on."""
    return Health()


@router.get("/readyz", tags=["service"], responses={503: {"model": Readiness, "description": "Not ready."}})
async def readyz(deps: ServiceDep, response: Response) -> Readiness:
    """Database and storage answer. A missing broker only degrades: the keeper notifies the workers then."""
    readiness = await check_readiness(deps)
    if readiness.status == "unavailable":
        response.status_code = 503
    return readiness


@router.get(
    "/metrics",
    tags=["service"],
    response_class=Response,
    responses={**documented(problems.UNAUTHENTICATED), 200: {"content": {"text/plain": {}}}},
)
async def metrics(request: Request, deps: ServiceDep, feed: FeedDep) -> Response:
    """Prometheus text. While the database is away, figures that come from it are missing or NaN, never old. Where
    `QE_METRICS_TOKEN` is set, the request must send it as a bearer token."""
    _check_token(request, deps.settings.metrics_token)
    text = await service.metrics(deps, followers=feed.followers)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _check_token(request: Request, token: str | None) -> None:
    if token is None:
        return
    token_of_client = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(token_of_client.encode(), token.encode()):
        challenge = {"WWW-Authenticate": 'Bearer realm="metrics"'}
        raise Problem(problems.UNAUTHENTICATED, "send QE_METRICS_TOKEN as a bearer token", headers=challenge)


@router.get("/v1/schemes", tags=["service"], responses=documented())
async def schemes(caller: AnyCaller) -> Schemes:
    """Schemes, group sizes, methods and slots that a job may name."""
    return service.schemes()


@router.get("/v1/workers", tags=["service"], responses=documented())
async def workers(caller: WorkersReader, session: SessionDep, deps: ServiceDep) -> WorkerList:
    """Who was heard of, and when."""
    return await service.list_workers(session, tenant=caller.tenant, settings=deps.settings)


@router.get("/problems/{slug}", tags=["service"], responses=documented(problems.NOT_FOUND))
async def problem(slug: str) -> ProblemEntry:
    """What a problem's `type` means."""
    kind = CATALOGUE.get(slug)
    if kind is None:
        raise Problem(problems.NOT_FOUND, f"no problem {slug!r}")
    return ProblemEntry(type=kind.uri, status=kind.status, title=kind.title, retryable=kind.retryable)
