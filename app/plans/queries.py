"""Reads for a plan: live workers, measured times of blocks, stored plans."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import owned
from core.ledger.states import JobStatus
from core.ledger.tables import Attempt, FinishedBlock, Job, Plan, Worker

PLAN_LIFETIME = timedelta(hours=24)
MOST_BLOCKS = 500
"""Blocks of finished jobs that a forecast reads, newest first."""


async def stored_plan(session: AsyncSession, *, tenant: str, digest: str) -> Plan | None:
    statement = owned(Plan, tenant).where(
        Plan.digest == digest, Plan.created_at > func.clock_timestamp() - PLAN_LIFETIME
    )
    return await session.scalar(statement)


async def workers_alive(session: AsyncSession, *, lease: timedelta) -> Sequence[Worker]:
    statement = select(Worker).where(Worker.seen_at > func.clock_timestamp() - lease)
    return (await session.scalars(statement.order_by(Worker.started_at, Worker.id))).all()


async def measured_ratios(session: AsyncSession, *, tenant: str) -> dict[str, list[float]]:
    """Kind of device → measured seconds over predicted ones, per block of the tenant's finished jobs."""
    statement = (
        owned(Job, tenant)
        .join(FinishedBlock, FinishedBlock.job_id == Job.id)
        .join(Attempt, and_(Attempt.job_id == FinishedBlock.job_id, Attempt.attempt == FinishedBlock.attempt))
        .where(Job.status == JobStatus.SUCCEEDED.value, Job.plan.is_not(None), Attempt.device.is_not(None))
        .order_by(Job.created_at.desc())
        .limit(MOST_BLOCKS)
        .with_only_columns(FinishedBlock.seconds, Job.plan["seconds_per_block"], Attempt.device)
    )
    ratios: dict[str, list[float]] = {}
    for seconds, prediction, device in (await session.execute(statement)).all():
        kind = kind_of(device)
        likely = (prediction or {}).get(kind)
        if likely:
            ratios.setdefault(kind, []).append(seconds / likely)
    return ratios


def kind_of(device: str) -> str:
    """A worker's device is ``cpu`` or the names of its GPUs."""
    return "cpu" if device == "cpu" else "cuda"
