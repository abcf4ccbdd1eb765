"""Metrics of the ledger, the schemes that a job may name, and the workers."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import timedelta
from math import nan

from prometheus_client import generate_latest
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.deps import Service
from app.system import queries
from app.system.schemas import MethodView, PlaceView, Schemes, SchemeView, WorkerList
from core.contract import spec
from core.settings import Settings
from quant_experts.spec.methods import MEASURED_ON, MEASUREMENTS
from quant_experts.spec.slots import RECONSTRUCTIONS, ROUNDINGS, SMOOTHINGS

METRICS_SECONDS = 1.0
"""The ledger's figures are reused for so long: anybody may ask for metrics, and counting a long queue costs time."""


async def metrics(deps: Service, *, followers: int) -> bytes:
    """Prometheus text. ``followers``: open event streams of this process."""
    telemetry = deps.telemetry
    telemetry.followers.set(followers)
    async with telemetry.ledger_lock:  # a request that waits here takes the figures of the one before
        if time.monotonic() - telemetry.ledger_read_at >= METRICS_SECONDS:
            await _read_ledger(deps)
            telemetry.ledger_read_at = time.monotonic()
    return generate_latest(telemetry.registry)


async def _read_ledger(deps: Service) -> None:
    telemetry = deps.telemetry
    try:
        async with deps.sessions() as session:
            for status, number in (await queries.unfinished_jobs(session)).items():
                telemetry.jobs.labels(status).set(number)
            telemetry.oldest_queued.set(await queries.oldest_queued_seconds(session))
            lease = timedelta(seconds=deps.settings.lease)
            alive, out_of_service = await queries.count_workers_alive(session, lease=lease)
            telemetry.workers.set(alive)
            telemetry.stopped_workers.set(out_of_service)
    except SQLAlchemyError:
        telemetry.jobs.clear()
        telemetry.oldest_queued.set(nan)
        telemetry.workers.set(nan)
        telemetry.stopped_workers.set(nan)


def schemes() -> Schemes:
    matches = [(name, spec.SCHEME_PATTERN.fullmatch(name)) for name in spec.NAMED_SCHEMES]
    return Schemes(
        schemes=[
            SchemeView(name=name, weight_bits=int(match[1]), activation_bits=int(match[2]))
            for name, match in matches
            if match is not None
        ],
        group_sizes=[32, 64, 128, "channel"],
        methods=[
            MethodView(
                name=name,
                smoothing=smoothing,
                rounding=rounding,
                reconstruction=reconstruction,
                measured=[PlaceView(**asdict(each)) for each in MEASUREMENTS.get(name, ())],
            )
            for name, (smoothing, rounding, reconstruction) in spec.METHODS.items()
        ],
        measured_on=MEASURED_ON,
        smoothings=list(SMOOTHINGS),
        roundings=list(ROUNDINGS),
        reconstructions=list(RECONSTRUCTIONS),
    )


async def list_workers(session: AsyncSession, *, tenant: str, settings: Settings) -> WorkerList:
    lease = timedelta(seconds=settings.lease)
    return WorkerList(data=await queries.workers_seen(session, tenant=tenant, lease=lease))
