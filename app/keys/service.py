"""Create, rotate and revoke API keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller, Keyring, Scope, new_api_key
from app.audit.service import Action, note
from app.db.pipeline import transaction_of
from app.db.tenancy import act_for, find_owned, owned
from app.deps import Service
from app.keys.schemas import CreatedKey, KeyQuery, KeyRotation, KeyView, NewKey
from app.web import problems
from app.web.idempotency import Created, Idempotency, Outcome
from app.web.paging import Page, Signer, as_page, page_of
from app.web.problems import Problem
from core.contract.ids import new_id
from core.ledger.tables import ApiKey


async def enter(session: AsyncSession, *, caller: Caller, tenant: str | None) -> str:
    """The tenant whose keys the request is about: the caller's own, or with the bootstrap key any. The rest of the
    transaction is that tenant's. Raises Problem 403."""
    if tenant is None or tenant == caller.tenant:
        return caller.tenant
    if not caller.is_bootstrap:
        raise Problem(problems.MISSING_SCOPE, "only the bootstrap key can manage keys of another tenant")
    await act_for(session, tenant)
    return tenant


async def create_key_once(
    session: AsyncSession, caller: Caller, deps: Service, *, new: NewKey, idempotency_key: str | None
) -> Outcome:
    """Create a key; a repeated request gets the same one. Raises Problem as ``create_key``."""

    async def create() -> Created:
        return _created(*await create_key(session, caller=caller, new=new, keyring=deps.keyring))

    owner = await enter(session, caller=caller, tenant=new.tenant)
    body, operation = new.model_dump(mode="json"), f"POST /v1/keys {caller.key_id}"
    idempotency = Idempotency.of(owner, idempotency_key, operation, body, seal=deps.seal)
    return await idempotency.run(await transaction_of(session), create)


async def rotate_key_once(
    session: AsyncSession,
    caller: Caller,
    deps: Service,
    *,
    key_id: str,
    rotation: KeyRotation | None,
    tenant: str | None,
    idempotency_key: str | None,
) -> Outcome:
    """Rotate a key; a repeated request gets the same one. Raises Problem as ``rotate_key``."""
    keep_previous = timedelta(seconds=(rotation or KeyRotation()).keep_previous_s)

    async def create() -> Created:
        return _created(
            *await rotate_key(
                session,
                caller=caller,
                key_id=key_id,
                keep_previous=keep_previous,
                keyring=deps.keyring,
                tenant=tenant,
            )
        )

    owner = await enter(session, caller=caller, tenant=tenant)
    body = {"keep_previous_s": keep_previous.total_seconds()}
    operation = f"POST /v1/keys/{key_id}/rotate {caller.key_id}"
    idempotency = Idempotency.of(owner, idempotency_key, operation, body, seal=deps.seal)
    return await idempotency.run(await transaction_of(session), create)


def _created(row: ApiKey, key: str) -> Created:
    return Created(CreatedKey(**KeyView.of(row).model_dump(), key=key), f"/v1/keys/{row.id}")


async def list_keys(session: AsyncSession, caller: Caller, *, query: KeyQuery, signer: Signer) -> Page[KeyView]:
    """Newest first, revoked ones included. Raises Problem 403, and for a cursor of another listing."""
    tenant = await enter(session, caller=caller, tenant=query.tenant)
    rows, cursor = await page_of(session, owned(ApiKey, tenant), ApiKey, query=query, signer=signer)
    return as_page(rows, cursor, KeyView.of)


async def create_key(session: AsyncSession, *, caller: Caller, new: NewKey, keyring: Keyring) -> tuple[ApiKey, str]:
    """The row and the key, which is not stored. Raises Problem 403 for scopes that the caller lacks, 422 for an expiry
    in the past."""
    beyond = sorted(scope for scope in new.scopes if scope not in caller.scopes)
    if beyond:
        raise Problem(problems.MISSING_SCOPE, f"a key cannot grant scopes that it lacks: {', '.join(beyond)}")
    if new.expires_at is not None and new.expires_at <= datetime.now(UTC):
        detail = "this time has passed: the key would open nothing"
        errors = [{"pointer": "/expires_at", "detail": detail}]
        raise Problem(problems.INVALID_REQUEST, f"/expires_at: {detail}", errors=errors)
    tenant = await enter(session, caller=caller, tenant=new.tenant)
    key, key_id = new_api_key(), new_id("key")
    scopes = sorted({scope.value for scope in new.scopes})
    await note(session, Action.KEY_CREATED, key_id, owner=tenant, name=new.name, scopes=scopes)
    row = ApiKey(
        id=key_id,
        tenant=tenant,
        name=new.name,
        digest=keyring.digest(key),
        scopes=scopes,
        expires_at=new.expires_at,
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
    """A new key with the same name, scopes and expiry. The previous key expires after ``keep_previous``, or sooner.

    Raises Problem 404, 409 for an expired key, 403 for a key with scopes that the caller lacks.
    """
    owner = await enter(session, caller=caller, tenant=tenant)
    old = await _locked(session, owner, key_id)
    now = await session.scalar(select(func.clock_timestamp()))
    assert now is not None
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Problem(problems.CONFLICT, f"key {key_id} has expired or was revoked: make a new one")
    new = NewKey(name=old.name, scopes=[Scope(scope) for scope in old.scopes], expires_at=old.expires_at, tenant=owner)
    row, key = await create_key(session, caller=caller, new=new, keyring=keyring)
    end = now + keep_previous
    old.expires_at = end if old.expires_at is None else min(end, old.expires_at)
    await session.flush()
    await note(session, Action.KEY_ROTATED, key_id, owner=owner, successor=row.id)
    return row, key


async def _locked(session: AsyncSession, tenant: str, key_id: str) -> ApiKey:
    row = await find_owned(session, ApiKey, key_id, tenant=tenant, lock=True)
    if row is None:
        raise Problem(problems.NOT_FOUND, f"no key {key_id!r}")
    return row
