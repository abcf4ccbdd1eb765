"""Reads about the service itself: tables and roles, workers, queue."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import and_, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.quotas import QUEUED
from app.db.engine import API_ROLE
from app.system.schemas import WorkerView
from core.ledger.states import FINISHED, JobStatus
from core.ledger.tables import Job, Worker


async def tables_exist(session: AsyncSession) -> bool:
    return await session.scalar(text("SELECT to_regclass('jobs') IS NOT NULL")) is True


async def api_role_is_granted(session: AsyncSession) -> bool:
    """Whether this login may use the role that row-level security binds."""
    statement = text("SELECT bool_or(pg_has_role(oid, 'MEMBER')) FROM pg_roles WHERE rolname = :role")
    return await session.scalar(statement, {"role": API_ROLE}) is True


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
            state=worker.state,
            state_reason=worker.state_reason if worker.state == "stopped" else None,
            job_id=job_id,
            started_at=worker.started_at,
            seen_at=worker.seen_at,
        )
        for worker, is_alive, job_id in (await session.execute(statement)).all()
    ]


async def unfinished_jobs(session: AsyncSession) -> dict[str, int]:
    """Queued and leased jobs by status, from two partial indexes.

    Anybody may request the metrics, and counting a million finished jobs took both cores of a small database 0.7 s.
    """
    counts = {status.value: 0 for status in JobStatus if status not in FINISHED}
    # Two queries: a partial index counts the queued jobs; one query for all would read every row.
    counts[JobStatus.QUEUED] = await session.scalar(select(func.count()).where(Job.status == QUEUED)) or 0
    leased = select(Job.status, func.count()).where(Job.lease_until.is_not(None)).group_by(Job.status)
    for status, number in await session.execute(leased):
        counts[status] = number
    return counts


async def oldest_queued_seconds(session: AsyncSession) -> float:
    oldest = select(Job.queued_at).where(Job.status == QUEUED).order_by(Job.queued_at).limit(1).scalar_subquery()
    age = select(func.extract("epoch", func.clock_timestamp() - oldest))
    return float(await session.scalar(age) or 0.0)


async def count_workers_alive(session: AsyncSession, *, lease: timedelta) -> tuple[int, int]:
    """Number of live workers, and of those that have stopped taking jobs."""
    stopped = func.count(Worker.id).filter(Worker.state == "stopped")
    statement = select(func.count(Worker.id), stopped).where(Worker.seen_at > func.clock_timestamp() - lease)
    alive, stopped_ones = (await session.execute(statement)).one()
    return alive, stopped_ones
