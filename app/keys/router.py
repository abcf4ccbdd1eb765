"""``/v1/keys``: API keys of the caller's tenant."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.deps import KeysAdmin, ServiceDep, SessionDep
from app.keys import service
from app.keys.schemas import OTHERS, CreatedKey, KeyQuery, KeyRotation, KeyView, NewKey, Tenant
from app.web import problems
from app.web.idempotency import IdempotencyKey
from app.web.paging import Page
from app.web.problems import documented

OfTenant = Annotated[Tenant | None, Query(description=OTHERS)]
router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post(
    "",
    status_code=201,
    response_model=CreatedKey,
    responses=documented(problems.MALFORMED_REQUEST, *problems.REPEATED),
)
async def create(
    new: NewKey,
    caller: KeysAdmin,
    session: SessionDep,
    deps: ServiceDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Make a key. The answer is the only place where it ever stands."""
    response.headers["Cache-Control"] = "no-store"
    created = await service.create_key_once(session, caller, deps, new=new, idempotency_key=idempotency_key)
    return created.answer(response)


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def list_keys(
    query: Annotated[KeyQuery, Query()], caller: KeysAdmin, session: SessionDep, deps: ServiceDep
) -> Page[KeyView]:
    """Keys, newest first, revoked ones included."""
    return await service.list_keys(session, caller, query=query, signer=deps.keyring)


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
    deps: ServiceDep,
    response: Response,
    rotation: KeyRotation | None = None,
    tenant: OfTenant = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """A new key that does what this one does; this one ends after a while. The new one is shown this once."""
    response.headers["Cache-Control"] = "no-store"
    created = await service.rotate_key_once(
        session, caller, deps, key_id=key_id, rotation=rotation, tenant=tenant, idempotency_key=idempotency_key
    )
    return created.answer(response)


@router.delete("/{key_id}", responses=documented(problems.NOT_FOUND))
async def revoke(key_id: str, caller: KeysAdmin, session: SessionDep, tenant: OfTenant = None) -> KeyView:
    """Revoke the key from the next request on; its record stays. Open event streams end within 15 s."""
    return KeyView.of(await service.revoke_key(session, caller=caller, key_id=key_id, tenant=tenant))
