"""The service itself: health, readiness, metrics, what can be asked for, who works, what problems mean."""

from __future__ import annotations

import hmac
import time
from dataclasses import asdict
from datetime import timedelta
from math import nan

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from app.deps import AnyCaller, Service, ServiceDep, SessionDep, WorkersReader
from app.system import queries
from app.system.readiness import check_readiness
from app.system.schemas import Health, MethodView, PlaceView, ProblemEntry, Readiness, Schemes, SchemeView, WorkerList
from app.web import problems
from app.web.problems import CATALOGUE, Problem, documented
from core.contract import spec
from quant_experts.spec.methods import MEASURED_ON, PLACES

FIGURES_SECONDS = 1.0
"""For so long what the ledger said is told again: anybody may ask, and counting a long queue costs something."""
router = APIRouter()


@router.get("/healthz", tags=["service"])
async def healthz() -> Health:
    """The process answers. Says nothing about what it depends on."""
    return Health()


@router.get("/readyz", tags=["service"], responses={503: {"model": Readiness, "description": "Not ready."}})
async def readyz(service: ServiceDep, response: Response) -> Readiness:
    """Database and storage answer. A missing broker only degrades: the keeper rings for it."""
    readiness = await check_readiness(service)
    if readiness.status == "unavailable":
        response.status_code = 503
    return readiness


@router.get(
    "/metrics",
    tags=["service"],
    response_class=Response,
    responses={**documented(problems.UNAUTHENTICATED), 200: {"content": {"text/plain": {}}}},
)
async def metrics(request: Request, service: ServiceDep) -> Response:
    """Prometheus text. While the database is away its figures are missing or NaN: no old number stands for now. With
    `QE_METRICS_TOKEN` it is for who sends that as a bearer token."""
    _check_token(request, service.settings.metrics_token)
    telemetry = service.telemetry
    telemetry.followers.set(service.feed.followers)
    async with telemetry.looking:  # who comes meanwhile takes what is found now
        if time.monotonic() - telemetry.looked_at >= FIGURES_SECONDS:
            await _look_at_the_ledger(service)
            telemetry.looked_at = time.monotonic()
    return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)


def _check_token(request: Request, token: str | None) -> None:
    if token is None:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), token.encode()):
        challenge = {"WWW-Authenticate": 'Bearer realm="metrics"'}
        raise Problem(problems.UNAUTHENTICATED, "send QE_METRICS_TOKEN as a bearer token", headers=challenge)


async def _look_at_the_ledger(service: Service) -> None:
    telemetry = service.telemetry
    try:
        async with service.sessions() as session:
            for status, number in (await queries.unfinished_jobs(session)).items():
                telemetry.jobs.labels(status).set(number)
            telemetry.oldest_queued.set(await queries.oldest_queued_seconds(session))
            lease = timedelta(seconds=service.settings.lease)
            alive, stopped = await queries.workers_alive(session, lease=lease)
            telemetry.workers.set(alive)
            telemetry.stopped_workers.set(stopped)
    except SQLAlchemyError:
        telemetry.jobs.clear()
        telemetry.oldest_queued.set(nan)
        telemetry.workers.set(nan)
        telemetry.stopped_workers.set(nan)


@router.get("/v1/schemes", tags=["service"], responses=documented())
async def schemes(caller: AnyCaller) -> Schemes:
    """Schemes, group sizes, methods and slots that a job may name."""
    named = [(name, spec.SCHEME_PATTERN.fullmatch(name)) for name in spec.NAMED_SCHEMES]
    return Schemes(
        schemes=[
            SchemeView(name=name, weight_bits=int(match[1]), activation_bits=int(match[2]))
            for name, match in named
            if match is not None
        ],
        group_sizes=[32, 64, 128, "channel"],
        methods=[
            MethodView(
                name=name,
                smoothing=smoothing,
                rounding=rounding,
                reconstruction=reconstruction,
                measured=[PlaceView(**asdict(place)) for place in PLACES.get(name, ())],
            )
            for name, (smoothing, rounding, reconstruction) in spec.METHODS.items()
        ],
        measured_on=MEASURED_ON,
        smoothings=list(spec.SMOOTHINGS),
        roundings=list(spec.ROUNDINGS),
        reconstructions=list(spec.RECONSTRUCTIONS),
    )


@router.get("/v1/workers", tags=["service"], responses=documented())
async def workers(caller: WorkersReader, session: SessionDep, service: ServiceDep) -> WorkerList:
    """Who was heard of, and when."""
    lease = timedelta(seconds=service.settings.lease)
    return WorkerList(data=await queries.workers_seen(session, tenant=caller.tenant, lease=lease))


@router.get("/problems/{slug}", tags=["service"], responses=documented(problems.NOT_FOUND))
async def problem(slug: str) -> ProblemEntry:
    """What a problem's `type` means."""
    kind = CATALOGUE.get(slug)
    if kind is None:
        raise Problem(problems.NOT_FOUND, f"no problem {slug!r}")
    return ProblemEntry(type=kind.uri, status=kind.status, title=kind.title, retryable=kind.retryable)
