"""Read and change how long things of a tenant are kept. The keeper removes what is older."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from app.access.quotas import lock_tenant
from app.audit.service import Action, note
from app.db.tenancy import owned
from app.retention.schemas import RetentionChanges, RetentionView
from core.ledger.tables import Retention
from core.settings import Settings


async def view_retention(session: AsyncSession, *, tenant: str, settings: Settings) -> RetentionView:
    return RetentionView.of(await session.scalar(owned(Retention, tenant)), settings)


async def set_retention(session: AsyncSession, *, tenant: str, changes: RetentionChanges) -> None:
    fields = changes.model_dump(exclude_unset=True)
    if not fields:
        return
    await lock_tenant(session, tenant)
    row = await session.scalar(owned(Retention, tenant).with_for_update())
    if row is None:
        row = Retention(tenant=tenant)
        session.add(row)
    for name, days in fields.items():
        setattr(row, name, days)
    await note(session, Action.RETENTION_CHANGED, tenant, **fields)
    await session.flush()
