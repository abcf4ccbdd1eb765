"""Create and revoke API keys."""

from __future__ import annotations

import re

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app import problems
from app.auth import Caller, Keyring, new_api_key
from app.contract.ids import new_id
from app.contract.tables import ApiKey
from app.keys.schemas import NewKey
from app.problems import Problem
from app.tenancy import act_for, owned

KEY_ID = re.compile(r"key_[0-9a-f]{32}")


async def create_key(session: AsyncSession, *, caller: Caller, wanted: NewKey, keyring: Keyring) -> tuple[ApiKey, str]:
    """The row and the key, which is nowhere else. Raises Problem 403 for more than the caller has itself."""
    beyond = sorted(scope for scope in wanted.scopes if scope not in caller.scopes)
    if beyond:
        raise Problem(problems.MISSING_SCOPE, f"a key cannot give what it lacks: {', '.join(beyond)}")
    if wanted.tenant not in (None, caller.tenant) and not caller.is_bootstrap:
        raise Problem(problems.MISSING_SCOPE, "only the bootstrap key makes keys of another tenant")
    if wanted.tenant is not None:
        await act_for(session, wanted.tenant)
    key = new_api_key()
    row = ApiKey(
        id=new_id("key"),
        tenant=wanted.tenant or caller.tenant,
        name=wanted.name,
        digest=keyring.digest(key),
        scopes=sorted({scope.value for scope in wanted.scopes}),
        expires_at=wanted.expires_at,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row, key


async def revoke_key(session: AsyncSession, *, caller: Caller, key_id: str) -> ApiKey:
    """Takes effect with the next request. Revoking twice changes nothing. Raises Problem 404."""
    row = None
    if KEY_ID.fullmatch(key_id):
        row = await session.scalar(owned(ApiKey, caller.tenant).where(ApiKey.id == key_id).with_for_update())
    if row is None:
        raise Problem(problems.NOT_FOUND, f"no key {key_id!r}")
    if row.revoked_at is None:
        row.revoked_at = func.clock_timestamp()
        await session.flush()
        await session.refresh(row)
    return row
