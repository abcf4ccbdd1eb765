"""``/v1/retention``: for how long a tenant's jobs, events, blocks, audit entries and deliveries are kept."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.quotas import one_at_a_time
from app.audit.service import Action, note
from app.db.tenancy import owned
from app.deps import KeysAdmin, ServiceDep, SessionDep, UsageReader
from app.retention.schemas import RetentionChanges, RetentionView
from app.web.problems import documented
from core.ledger.tables import Retention
from core.settings import Settings

router = APIRouter(prefix="/v1/retention", tags=["usage"])


@router.get("", responses=documented())
async def get(caller: UsageReader, session: SessionDep, parts: ServiceDep) -> RetentionView:
    """For how many days things are kept. The keeper removes what is older."""
    return await view(session, tenant=caller.tenant, settings=parts.settings)


@router.patch("", responses=documented())
async def change(wanted: RetentionChanges, caller: KeysAdmin, session: SessionDep, parts: ServiceDep) -> RetentionView:
    """Keep things for longer or shorter. What is older than that goes within minutes, and does not come back."""
    await set_retention(session, tenant=caller.tenant, wanted=wanted)
    return await view(session, tenant=caller.tenant, settings=parts.settings)


async def view(session: AsyncSession, *, tenant: str, settings: Settings) -> RetentionView:
    return RetentionView.of(await session.scalar(owned(Retention, tenant)), settings)


async def set_retention(session: AsyncSession, *, tenant: str, wanted: RetentionChanges) -> None:
    changes = wanted.model_dump(exclude_unset=True)
    if not changes:
        return
    await one_at_a_time(session, tenant)
    row = await session.scalar(owned(Retention, tenant).with_for_update())
    if row is None:
        row = Retention(tenant=tenant)
        session.add(row)
    for name, days in changes.items():
        setattr(row, name, days)
    await note(session, Action.RETENTION_CHANGED, tenant, **changes)
    await session.flush()
