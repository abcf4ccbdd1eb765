"""Sums over a tenant's jobs, attempts and bytes."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.db.tenancy import owned
from app.usage.schemas import By, Period
from core.ledger.tables import Attempt, Dataset, Job, UsageDay

CPU = "cpu"


async def periods(session: AsyncSession, *, tenant: str, since: datetime, until: datetime, by: By) -> list[Period]:
    """Periods with any usage, in order. Jobs are counted in whole days. Its cost does not grow with the number of jobs:
    the usage of finished jobs is stored by day."""

    def by_period(statement: Select[Any], at: InstrumentedAttribute[Any], *sums: ColumnElement[Any]) -> Select[Any]:
        start = func.date_trunc(by.value, at, "UTC").label("start")
        return statement.with_only_columns(start, *sums).group_by("start")

    days = owned(UsageDay, tenant).where(UsageDay.day >= _midnight(since), UsageDay.day < until)
    columns_of_sums = [func.sum(getattr(UsageDay, name)).label(name) for name in Period.model_fields if name != "start"]
    # No negative time when the clock was set back.
    held_seconds = func.greatest(func.extract("epoch", func.clock_timestamp() - Attempt.started_at), 0)
    now = owned(Job, tenant).where(Job.lease_until.is_not(None))
    now = now.join(Attempt, and_(Attempt.job_id == Job.id, Attempt.attempt == Job.attempt, Attempt.ended_at.is_(None)))
    now = now.where(Attempt.started_at >= _midnight(since), Attempt.started_at < until)
    datasets = owned(Dataset, tenant).where(Dataset.created_at >= since, Dataset.created_at < until)
    statements: tuple[Select[Any], ...] = (
        by_period(days, UsageDay.day, *columns_of_sums),
        by_period(
            now,
            Attempt.started_at,
            func.sum(held_seconds).label("worker_seconds"),
            func.coalesce(func.sum(held_seconds).filter(Attempt.device != CPU), 0).label("gpu_seconds"),
        ),
        by_period(datasets, Dataset.created_at, func.sum(Dataset.bytes).label("bytes_added")),
    )
    by_start: dict[datetime, Counter[str]] = defaultdict(Counter)
    for statement in statements:
        for row in (await session.execute(statement)).all():
            values = row._asdict()
            by_start[values.pop("start")].update({name: float(value) for name, value in values.items()})
    return [
        Period.model_validate({"start": start, **columns})
        for start, columns in sorted(by_start.items())
        if any(columns.values())
    ]


def _midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
