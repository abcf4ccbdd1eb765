"""Tenant filters: every query of a tenant's table starts here, so that none can forget the filter.

A test reads the code of ``app`` and refuses ``select``, ``update`` and the like on these tables anywhere else.
Row-level security is the second defence: see ``app.db.engine``.
"""

from __future__ import annotations

import re
from typing import TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from core.ledger.tables import (
    ApiKey,
    Artifact,
    Attempt,
    AuditEntry,
    Bucket,
    Comparison,
    Dataset,
    FinishedBlock,
    HubToken,
    IdempotencyRecord,
    Job,
    JobEvent,
    JobLabel,
    Plan,
    Push,
    Retention,
    TenantLimits,
    UsageDay,
    Webhook,
    WebhookAttempt,
    WebhookDelivery,
)

ROW_ID = re.compile(r"[a-z]{2,4}_[0-9a-f]{32}")
OwnedRow = TypeVar("OwnedRow", Job, Dataset, ApiKey, Comparison, Webhook, WebhookDelivery, AuditEntry, Push)
NamedRow = TypeVar(
    "NamedRow",
    Job,
    Dataset,
    ApiKey,
    Comparison,
    IdempotencyRecord,
    Plan,
    Webhook,
    WebhookDelivery,
    WebhookAttempt,
    AuditEntry,
    TenantLimits,
    Retention,
    HubToken,
    UsageDay,
    JobLabel,
    Push,
    Bucket,
)
Part = TypeVar("Part", Attempt, FinishedBlock, JobEvent, Artifact)


def owned(table: type[NamedRow], tenant: str) -> Select[NamedRow]:
    """The tenant's rows."""
    return select(table).where(table.tenant == tenant)


async def find_owned(
    session: AsyncSession, table: type[OwnedRow], row_id: str, *, tenant: str, lock: bool = False
) -> OwnedRow | None:
    """The tenant's row with this id. An id of another form is not sent to the database: it may hold a NUL."""
    if ROW_ID.fullmatch(row_id) is None:
        return None
    statement = owned(table, tenant).where(table.id == row_id)
    return await session.scalar(statement.with_for_update() if lock else statement)


def of_job(table: type[Part], job_id: str) -> Select[Part]:
    """Rows that belong to a job. The caller has read the job with its tenant filter."""
    return select(table).where(table.job_id == job_id)


def of_tenant(table: type[NamedRow]) -> str:
    """As ``owned``, for SQL text: the part after FROM. It needs the value ``tenant``."""
    name = table.__tablename__
    return f"{name} WHERE {name}.tenant = %(tenant)s"


async def act_for(session: AsyncSession, tenant: str) -> None:
    """Set another tenant for the rest of this transaction: the bootstrap key manages the keys of all tenants."""
    await session.execute(select(func.set_config("app.tenant", tenant, True)))
