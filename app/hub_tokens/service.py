"""A tenant's token for the Hugging Face Hub. It is stored sealed, and opened only for requests to the hub."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from app.access.quotas import lock_tenant
from app.audit.service import Action, note
from app.db.tenancy import owned
from app.hub_tokens.schemas import HubTokenView
from app.web import problems
from app.web.problems import Problem
from core.ledger.tables import HubToken
from core.secret import BadSeal, hub_seal, open_hub_token
from core.settings import Settings


async def view_token(session: AsyncSession, *, tenant: str, settings: Settings) -> HubTokenView:
    return HubTokenView.of(await session.scalar(owned(HubToken, tenant)), settings)


async def store_token(session: AsyncSession, *, tenant: str, token: str, settings: Settings) -> None:
    """Set or replace the token. Raises Problem 409 when this service has no QE_HUB_KEY."""
    seal = hub_seal(settings)
    if seal is None:
        raise Problem(problems.NO_HUB_TOKENS, "tenants' hub tokens need QE_HUB_KEY: ask who runs the service to set it")
    await lock_tenant(session, tenant)
    row = await session.scalar(owned(HubToken, tenant))
    if row is None:
        row = HubToken(tenant=tenant)
        session.add(row)
    row.sealed, row.set_at = seal.seal(token, row=tenant), datetime.now(UTC)
    await note(session, Action.HUB_TOKEN_SET, tenant)
    await session.flush()


async def delete_token(session: AsyncSession, *, tenant: str) -> None:
    """Delete the token. Idempotent."""
    await lock_tenant(session, tenant)
    row = await session.scalar(owned(HubToken, tenant))
    if row is not None:
        await session.delete(row)
        await note(session, Action.HUB_TOKEN_DELETED, tenant)
        await session.flush()


async def token_of(session: AsyncSession, *, tenant: str, settings: Settings) -> str | None:
    """The token that fetches the tenant's models and datasets: its own, else the service's.

    Raises Problem 409 when its own cannot be opened; the service's token would give access to other repositories.
    """
    row = await session.scalar(owned(HubToken, tenant))
    if row is None:
        return settings.hub_token
    try:
        return open_hub_token(row.sealed, tenant=tenant, settings=settings)
    except BadSeal:
        raise Problem(
            problems.HUB_TOKEN_UNREADABLE, "the tenant's hub token was kept under another QE_HUB_KEY: set it again"
        ) from None
