"""``/v1/retention``: for how long a tenant's jobs, events, blocks, audit entries and deliveries are kept."""

from __future__ import annotations

from fastapi import APIRouter

from app.deps import KeysAdmin, ServiceDep, SessionDep, UsageReader
from app.retention import service
from app.retention.schemas import RetentionChanges, RetentionView
from app.web.problems import documented

router = APIRouter(prefix="/v1/retention", tags=["usage"])


@router.get("", responses=documented())
async def get(caller: UsageReader, session: SessionDep, deps: ServiceDep) -> RetentionView:
    """For how many days things are kept. The keeper removes what is older."""
    return await service.view_retention(session, tenant=caller.tenant, settings=deps.settings)


@router.patch("", responses=documented())
async def change(changes: RetentionChanges, caller: KeysAdmin, session: SessionDep, deps: ServiceDep) -> RetentionView:
    """Keep things for longer or shorter. What is older than that goes within minutes, and does not come back."""
    await service.set_retention(session, tenant=caller.tenant, changes=changes)
    return await service.view_retention(session, tenant=caller.tenant, settings=deps.settings)
