"""``/v1/hub-token``: a tenant's own token for the Hugging Face Hub."""

from __future__ import annotations

from fastapi import APIRouter

from app.deps import KeysAdmin, ServiceDep, SessionDep
from app.hub_tokens import service
from app.hub_tokens.schemas import HubTokenView, NewHubToken
from app.web import problems
from app.web.problems import documented

router = APIRouter(prefix="/v1/hub-token", tags=["keys"])


@router.get("", responses=documented())
async def get(caller: KeysAdmin, session: SessionDep, deps: ServiceDep) -> HubTokenView:
    """Which token fetches from the hub: the tenant's or the service's. The token itself is never shown."""
    return await service.view_token(session, tenant=caller.tenant, settings=deps.settings)


@router.put("", responses=documented(problems.NO_HUB_TOKENS))
async def put(new: NewHubToken, caller: KeysAdmin, session: SessionDep, deps: ServiceDep) -> HubTokenView:
    """Set or replace the tenant's own token. From the next fetch on it opens gated and private repositories."""
    await service.store_token(session, tenant=caller.tenant, token=new.token, settings=deps.settings)
    return await service.view_token(session, tenant=caller.tenant, settings=deps.settings)


@router.delete("", responses=documented())
async def delete(caller: KeysAdmin, session: SessionDep, deps: ServiceDep) -> HubTokenView:
    """Forget the tenant's own token; the service's is used again, if it has one."""
    await service.delete_token(session, tenant=caller.tenant)
    return await service.view_token(session, tenant=caller.tenant, settings=deps.settings)
