"""Whose rows a query may see. Every query of a tenant's table starts here, so that none can forget the filter.

A test reads the code of ``app`` and refuses ``select``, ``update`` and the like on these tables anywhere else. Behind
it stands the second wall, row-level security: see ``app.db.engine``.
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
    """What belongs to a job. Only for a job that was found among its tenant's."""
    return select(table).where(table.job_id == job_id)


def of_tenant(table: type[Named]) -> str:
    """As ``owned``, for a statement that is written as text: what comes after FROM. It needs the value ``tenant``."""
    name = table.__tablename__
    return f"{name} WHERE {name}.tenant = %(tenant)s"


async def act_for(session: AsyncSession, tenant: str) -> None:
    """The rest of this transaction is another tenant's. For the bootstrap key, which makes the keys of all."""
    await session.execute(select(func.set_config("app.tenant", tenant, True)))
