"""Tenant filters: every query of a tenant's table starts here, so that none can forget the filter.

A test reads the code of ``app`` and refuses ``select``, ``update`` and the like on these tables anywhere else.
Row-level security is the second defence: see ``app.db.engine``.
"""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from core.ledger.tables import (
    ApiKey,
    Artifact,
    Attempt,
    AuditEntry,
    Comparison,
    Dataset,
    HubToken,
    IdempotencyRecord,
    Job,
    JobEvent,
    JobLabel,
    Layer,
    Plan,
    Retention,
    TenantLimits,
    UsageDay,
    Webhook,
    WebhookAttempt,
    WebhookDelivery,
)

Owned = TypeVar("Owned", Job, Dataset, ApiKey, Comparison, Webhook, WebhookDelivery, AuditEntry)
Named = TypeVar(
    "Named",
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
)
Part = TypeVar("Part", Attempt, Layer, JobEvent, Artifact)


def owned(table: type[Named], tenant: str) -> Select[Named]:
    """The tenant's rows."""
    return select(table).where(table.tenant == tenant)


def of_job(table: type[Part], job_id: str) -> Select[Part]:
    """Rows that belong to a job. The caller has read the job with its tenant filter."""
    return select(table).where(table.job_id == job_id)


def of_tenant(table: type[Named]) -> str:
    """As ``owned``, for SQL text: the part after FROM. It needs the value ``tenant``."""
    name = table.__tablename__
    return f"{name} WHERE {name}.tenant = %(tenant)s"


async def act_for(session: AsyncSession, tenant: str) -> None:
    """Set another tenant for the rest of this transaction: the bootstrap key manages the keys of all tenants."""
    await session.execute(select(func.set_config("app.tenant", tenant, True)))
