"""Sums over a tenant's jobs, attempts and bytes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.contract.states import FINISHED, JobStatus
from app.contract.tables import Attempt, Dataset, Job
from app.direct import Transaction
from app.tenancy import of_tenant, owned
from app.usage.schemas import By, Period

CPU = "cpu"


async def periods(session: AsyncSession, *, tenant: str, since: datetime, until: datetime, by: By) -> list[Period]:
    """Those in which anything happened, in order."""
    jobs = owned(Job, tenant)

    def within(statement: Select[Any], at: InstrumentedAttribute[Any], *sums: ColumnElement[Any]) -> Select[Any]:
        start = func.date_trunc(by.value, at, "UTC").label("start")
        return statement.where(at >= since, at < until).with_only_columns(start, *sums).group_by("start")

    # A clock that was set back meanwhile makes no time negative.
    ended = func.coalesce(Attempt.ended_at, func.clock_timestamp())
    held = func.greatest(func.extract("epoch", ended - Attempt.started_at), 0)
    statements = (
        within(jobs, Job.created_at, func.count().label("jobs_created")),
        within(jobs, Job.finished_at, *(_ended(status) for status in sorted(FINISHED))),
        within(
            jobs.join(Attempt, Attempt.job_id == Job.id),
            Attempt.started_at,
            func.sum(held).label("worker_seconds"),
            func.coalesce(func.sum(held).filter(Attempt.device != CPU), 0).label("gpu_seconds"),
        ),
        within(owned(Dataset, tenant), Dataset.created_at, func.sum(Dataset.bytes).label("bytes_added")),
        within(
            jobs.where(Job.artifact_bytes.is_not(None)),
            Job.finished_at,
            func.sum(Job.artifact_bytes).label("bytes_added"),
        ),
    )
    found: dict[datetime, Counter[str]] = defaultdict(Counter)
    for statement in statements:
        for row in (await session.execute(statement)).all():
            values = row._asdict()
            found[values.pop("start")].update({name: float(value) for name, value in values.items()})
    return [Period.model_validate({"start": start, **found[start]}) for start in sorted(found)]


def _ended(status: JobStatus) -> ColumnElement[int]:
    return func.count().filter(Job.status == status.value).label(f"jobs_{status.value}")


DATASET_BYTES = f"SELECT coalesce(sum(bytes), 0)::bigint AS bytes FROM {of_tenant(Dataset)} AND key IS NOT NULL"  # noqa: S608
ARTIFACT_BYTES = f"""
SELECT coalesce(sum(artifact_bytes), 0)::bigint AS bytes FROM {of_tenant(Job)} AND artifact_bytes IS NOT NULL
"""  # noqa: S608 -- every part is ours


@dataclass
class _Sum:
    bytes: int


async def dataset_bytes(transaction: Transaction, *, tenant: str) -> int:
    return (await transaction.rows(DATASET_BYTES, {"tenant": tenant}, of=_Sum))[0].bytes


async def artifact_bytes(transaction: Transaction, *, tenant: str) -> int:
    return (await transaction.rows(ARTIFACT_BYTES, {"tenant": tenant}, of=_Sum))[0].bytes
