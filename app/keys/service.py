"""Create, rotate and revoke API keys."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller, Keyring, Scope, new_api_key
from app.audit.service import Action, note
from app.db.tenancy import act_for, owned
from app.keys.schemas import NewKey
from app.web import problems
from app.web.problems import Problem
from core.contract.ids import new_id
from core.ledger.tables import ApiKey

KEY_ID = re.compile(r"key_[0-9a-f]{32}")


async def enter(session: AsyncSession, *, caller: Caller, tenant: str | None) -> str:
    """The tenant whose keys are meant: the caller's own, or for the bootstrap key any, of which the transaction is from
    here on. Raises Problem 403."""
    if tenant is None or tenant == caller.tenant:
        return caller.tenant
    if not caller.is_bootstrap:
        raise Problem(problems.MISSING_SCOPE, "only the bootstrap key has to do with keys of another tenant")
    await act_for(session, tenant)
    return tenant


async def create_key(session: AsyncSession, *, caller: Caller, wanted: NewKey, keyring: Keyring) -> tuple[ApiKey, str]:
    """The row and the key, which is nowhere else. Raises Problem 403 for more than the caller has itself,
    422 for a key that has ended before it begins."""
    beyond = sorted(scope for scope in wanted.scopes if scope not in caller.scopes)
    if beyond:
        raise Problem(problems.MISSING_SCOPE, f"a key cannot give what it lacks: {', '.join(beyond)}")
    if wanted.expires_at is not None and wanted.expires_at <= datetime.now(UTC):
        detail = "this time has passed: the key would open nothing"
        errors = [{"pointer": "/expires_at", "detail": detail}]
        raise Problem(problems.INVALID_REQUEST, f"/expires_at: {detail}", errors=errors)
    tenant = await enter(session, caller=caller, tenant=wanted.tenant)
    key, key_id = new_api_key(), new_id("key")
    scopes = sorted({scope.value for scope in wanted.scopes})
    await note(session, Action.KEY_CREATED, key_id, owner=tenant, name=wanted.name, scopes=scopes)
    row = ApiKey(
        id=key_id,
        tenant=tenant,
        name=wanted.name,
        digest=keyring.digest(key),
        scopes=scopes,
        expires_at=wanted.expires_at,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row, key


async def revoke_key(session: AsyncSession, *, caller: Caller, key_id: str, tenant: str | None = None) -> ApiKey:
    """Takes effect with the next request. Revoking twice changes nothing. Raises Problem 403 or 404."""
    owner = await enter(session, caller=caller, tenant=tenant)
    row = await _locked(session, owner, key_id)
    if row.revoked_at is None:
        await note(session, Action.KEY_REVOKED, key_id, owner=owner, name=row.name)
        row.revoked_at = func.clock_timestamp()
        await session.flush()
        await session.refresh(row)
    return row


async def rotate_key(
    session: AsyncSession,
    *,
    caller: Caller,
    key_id: str,
    keep_previous: timedelta,
    keyring: Keyring,
    tenant: str | None = None,
) -> tuple[ApiKey, str]:
    """Another key with the same name, scopes and end; the one before ends after ``keep_previous``, or sooner.

    Raises Problem 404, 409 for a key that has ended, 403 for one that can do more than the caller.
    """
    owner = await enter(session, caller=caller, tenant=tenant)
    old = await _locked(session, owner, key_id)
    now = await session.scalar(select(func.clock_timestamp()))
    assert now is not None
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Problem(problems.CONFLICT, f"key {key_id} has ended: make a new one")
    wanted = NewKey(
        name=old.name, scopes=[Scope(scope) for scope in old.scopes], expires_at=old.expires_at, tenant=owner
    )
    row, key = await create_key(session, caller=caller, wanted=wanted, keyring=keyring)
    end = now + keep_previous
    old.expires_at = end if old.expires_at is None else min(end, old.expires_at)
    await session.flush()
    await note(session, Action.KEY_ROTATED, key_id, owner=owner, successor=row.id)
    return row, key


async def _locked(session: AsyncSession, tenant: str, key_id: str) -> ApiKey:
    row = None
    if KEY_ID.fullmatch(key_id):
        row = await session.scalar(owned(ApiKey, tenant).where(ApiKey.id == key_id).with_for_update())
    if row is None:
        raise Problem(problems.NOT_FOUND, f"no key {key_id!r}")
    return row
