"""A job's events: the one way to append one, and the reads behind JSON pages and streams.

``seq`` is dense from 1 because the number is taken from the job's row, under its lock, in the transaction that writes
the event: who sees an event sees every one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app.contract.events import EventType
from app.contract.tables import Job, JobEvent
from app.tenancy import of_job


async def append_event(session: AsyncSession, *, job_id: str, kind: EventType, data: dict[str, Any]) -> None:
    """The caller has the job; its transaction makes the event visible."""
    numbered = update(Job).where(Job.id == job_id).values(event_seq=Job.event_seq + 1).returning(Job.event_seq)
    bumped = numbered.cte("bumped")
    row = select(literal(job_id), bumped.c.event_seq, literal(kind.value), literal(data, JSONB))
    await session.execute(insert(JobEvent).from_select(["job_id", "seq", "type", "data"], row))


async def events_after(session: AsyncSession, *, job_id: str, seq: int, limit: int) -> Sequence[JobEvent]:
    statement = of_job(JobEvent, job_id).where(JobEvent.seq > seq)
    return (await session.scalars(statement.order_by(JobEvent.seq).limit(limit))).all()
