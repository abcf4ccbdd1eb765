"""``/v1/keys``: API keys of the caller's tenant."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.db.pipeline import joined
from app.db.tenancy import owned
from app.deps import KeysAdmin, ServiceDep, SessionDep
from app.keys import service
from app.keys.schemas import OTHERS, CreatedKey, KeyQuery, KeyRotation, KeyView, NewKey, Tenant
from app.web import problems
from app.web.idempotency import IdempotencyKey, Made, Once
from app.web.paging import Page, page_of
from app.web.problems import documented
from core.ledger.tables import ApiKey

OfTenant = Annotated[Tenant | None, Query(description=OTHERS)]
router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post(
    "",
    status_code=201,
    response_model=CreatedKey,
    responses=documented(problems.MALFORMED_REQUEST, *problems.REPEATED),
)
async def create(
    wanted: NewKey,
    caller: KeysAdmin,
    session: SessionDep,
    parts: ServiceDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Make a key. The answer is the only place where it ever stands."""

    async def make() -> Made:
        row, key = await service.create_key(session, caller=caller, wanted=wanted, keyring=parts.keyring)
        return Made(CreatedKey(**KeyView.of(row).model_dump(), key=key), f"/v1/keys/{row.id}")

    response.headers["Cache-Control"] = "no-store"
    owner = await service.enter(session, caller=caller, tenant=wanted.tenant)
    body = wanted.model_dump(mode="json")
    once = Once.of(owner, idempotency_key, f"POST /v1/keys {caller.key_id}", body, seal=parts.seal)
    return await once.answer(await joined(session), response, make)


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def list_keys(
    query: Annotated[KeyQuery, Query()], caller: KeysAdmin, session: SessionDep, parts: ServiceDep
) -> Page[KeyView]:
    """Keys, newest first, revoked ones included."""
    tenant = await service.enter(session, caller=caller, tenant=query.tenant)
    rows, cursor = await page_of(session, owned(ApiKey, tenant), ApiKey, query=query, keyring=parts.keyring)
    return Page(data=[KeyView.of(row) for row in rows], has_more=cursor is not None, next_cursor=cursor)


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    response_model=CreatedKey,
    responses=documented(
        problems.NOT_FOUND,
        problems.CONFLICT,
        problems.MALFORMED_REQUEST,
        problems.BODY_TOO_LARGE,
        *problems.REPEATED,
    ),
)
async def rotate(
    key_id: str,
    caller: KeysAdmin,
    session: SessionDep,
    parts: ServiceDep,
    response: Response,
    rotation: KeyRotation | None = None,
    tenant: OfTenant = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """A new key that does what this one does; this one ends after a while. The new one is shown this once."""
    keep_previous = timedelta(seconds=(rotation or KeyRotation()).keep_previous_s)

    async def make() -> Made:
        row, key = await service.rotate_key(
            session, caller=caller, key_id=key_id, keep_previous=keep_previous, keyring=parts.keyring, tenant=tenant
        )
        return Made(CreatedKey(**KeyView.of(row).model_dump(), key=key), f"/v1/keys/{row.id}")

    response.headers["Cache-Control"] = "no-store"
    owner = await service.enter(session, caller=caller, tenant=tenant)
    body = {"keep_previous_s": keep_previous.total_seconds()}
    operation = f"POST /v1/keys/{key_id}/rotate {caller.key_id}"
    once = Once.of(owner, idempotency_key, operation, body, seal=parts.seal)
    return await once.answer(await joined(session), response, make)


@router.delete("/{key_id}", responses=documented(problems.NOT_FOUND))
async def revoke(key_id: str, caller: KeysAdmin, session: SessionDep, tenant: OfTenant = None) -> KeyView:
    """Revoke the key from the next request on; its record stays. Open event streams end within 15 s."""
    return KeyView.of(await service.revoke_key(session, caller=caller, key_id=key_id, tenant=tenant))
