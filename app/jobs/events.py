"""A job's events: append one, and read those after a number.

A reader that sees an event sees every earlier one: see ``core.ledger.outbox``.
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
    """The caller holds the lock of the job. Its commit makes the event and the webhook deliveries visible."""
    await session.flush()  # the event must follow the changes of this transaction
    connection = await session.connection()
    await connection.exec_driver_sql(APPEND_EVENT, {"job_id": job_id, "type": kind.value, "data": Jsonb(data)})


async def events_after(session: AsyncSession, *, job_id: str, seq: int, limit: int) -> Sequence[JobEvent]:
    statement = of_job(JobEvent, job_id).where(JobEvent.seq > seq)
    return (await session.scalars(statement.order_by(JobEvent.seq).limit(limit))).all()
