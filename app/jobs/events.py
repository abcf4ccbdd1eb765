"""A job's events: the API's way to append one, and the reads behind JSON pages and streams.

Who sees an event sees every one before it: see ``core.ledger.outbox``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import of_job
from core.contract.events import EventType
from core.ledger.outbox import APPEND_EVENT
from core.ledger.tables import JobEvent


async def append_event(session: AsyncSession, *, job_id: str, kind: EventType, data: dict[str, Any]) -> None:
    """The caller has the job; its transaction makes the event visible, and its webhooks' deliveries with it."""
    await session.flush()  # what is said of the job must be what the transaction has made of it
    connection = await session.connection()
    await connection.exec_driver_sql(APPEND_EVENT, {"job_id": job_id, "type": kind.value, "data": Jsonb(data)})


async def events_after(session: AsyncSession, *, job_id: str, seq: int, limit: int) -> Sequence[JobEvent]:
    statement = of_job(JobEvent, job_id).where(JobEvent.seq > seq)
    return (await session.scalars(statement.order_by(JobEvent.seq).limit(limit))).all()
