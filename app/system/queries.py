"""Reads about the service itself: is it whole, who works, what waits."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import and_, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.contract.states import FINISHED, JobStatus
from app.contract.tables import Job, Worker
from app.database import API_ROLE
from app.quotas import QUEUED
from app.system.schemas import WorkerView


async def ledger_is_there(session: AsyncSession) -> bool:
    return await session.scalar(text("SELECT to_regclass('jobs') IS NOT NULL")) is True


async def wall_is_there(session: AsyncSession) -> bool:
    """Whether this login may work as the role that row-level security binds."""
    asked = text("SELECT bool_or(pg_has_role(oid, 'MEMBER')) FROM pg_roles WHERE rolname = :role")
    return await session.scalar(asked, {"role": API_ROLE}) is True


async def workers_seen(session: AsyncSession, *, tenant: str, lease: timedelta) -> list[WorkerView]:
    alive = (Worker.seen_at > func.clock_timestamp() - lease).label("alive")
    statement = (
        select(Worker, alive, Job.id)
        .outerjoin(Job, and_(Job.id == Worker.job_id, Job.tenant == tenant))
        .order_by(Worker.started_at, Worker.id)
    )
    return [
        WorkerView(
            id=worker.id,
            host=worker.host,
            device=worker.device,
            alive=is_alive,
            busy=worker.job_id is not None,
            job_id=job_id,
            started_at=worker.started_at,
            seen_at=worker.seen_at,
        )
        for worker, is_alive, job_id in (await session.execute(statement)).all()
    ]


async def unfinished_jobs(session: AsyncSession) -> dict[str, int]:
    """Jobs by status, of those that wait or are held: two small indexes, however many jobs have ended.

    Anybody may ask for the metrics; counting a million ended jobs took both cores of a small database 0.7 s.
    """
    counts = {status.value: 0 for status in JobStatus if status not in FINISHED}
    unfinished = or_(Job.status == QUEUED, Job.lease_until.is_not(None))
    for status, number in await session.execute(
        select(Job.status, func.count()).where(unfinished).group_by(Job.status)
    ):
        counts[status] = number
    return counts


async def oldest_queued_seconds(session: AsyncSession) -> float:
    age = func.extract("epoch", func.max(func.clock_timestamp() - Job.queued_at))
    return float(await session.scalar(select(age).where(Job.status == QUEUED)) or 0.0)


async def workers_alive(session: AsyncSession, *, lease: timedelta) -> int:
    statement = select(func.count(Worker.id))
    return await session.scalar(statement.where(Worker.seen_at > func.clock_timestamp() - lease)) or 0
