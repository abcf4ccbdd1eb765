"""The dashboard's page of API keys, of the tenant's token for the hub, and of its keys of buckets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import EXPLAINED, Scope
from app.buckets import service as buckets
from app.buckets.schemas import NamedBucket
from app.deps import Service, ServiceDep, SessionDep
from app.hub_tokens import service as hub_tokens
from app.hub_tokens.schemas import NewHubToken
from app.keys import service as keys_service
from app.keys.schemas import CreatedKey, KeyQuery, KeyView, NewKey
from app.ui import forms
from app.ui.pages import Page, redirect_to, render
from app.ui.sign_in import KeysAdmin, User, checked_form
from app.web.problems import Problem

LIFETIMES = {"": "never", "7": "in 7 days", "30": "in 30 days", "90": "in 90 days", "365": "in a year"}
USUAL = (Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.DATASETS_READ, Scope.DATASETS_WRITE)
EMPTY: dict[str, Any] = {"name": "", "days": "90", "scopes": [scope.value for scope in USUAL]}
"""Values of an empty form."""
SENTENCES = {
    ("name", "string_too_short"): "give the key a name",
    ("scopes", "too_short"): "choose at least one scope",
}
router = APIRouter(route_class=Page)


@router.get("/keys")
async def keys(
    request: Request,
    user: KeysAdmin,
    session: SessionDep,
    deps: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    return await _page(request, user, session, deps, cursor=cursor)


@router.post("/keys")
async def create(request: Request, user: KeysAdmin, session: SessionDep, deps: ServiceDep) -> Response:
    """The response shows the key instead of redirecting: the key is not stored."""
    form = await checked_form(request, user)
    values: dict[str, Any] = {name: str(form.get(name, "")).strip() for name in ("name", "days")}
    values["scopes"] = [str(scope) for scope in form.getlist("scopes")]
    fields = {"name": values["name"], "scopes": values["scopes"]}
    if values["days"] in LIFETIMES and values["days"]:
        fields["expires_at"] = (datetime.now(UTC) + timedelta(days=int(values["days"]))).isoformat()
    try:
        new = NewKey.model_validate(fields)
        row, key = await keys_service.create_key(session, caller=user.caller, new=new, keyring=deps.keyring)
    except ValidationError as error:
        wrong = forms.invalid(error.errors(), sentences=SENTENCES)
        return await _page(request, user, session, deps, values=values, wrong=wrong)
    except Problem as problem:
        return await _page(request, user, session, deps, values=values, wrong=forms.refused(problem))
    return await _page(request, user, session, deps, created=CreatedKey(**KeyView.of(row).model_dump(), key=key))


@router.post("/keys/hub-token")
async def set_hub_token(request: Request, user: KeysAdmin, session: SessionDep, deps: ServiceDep) -> Response:
    form = await checked_form(request, user)
    try:
        new = NewHubToken(token=str(form.get("token", "")).strip())
        await hub_tokens.store_token(session, tenant=user.caller.tenant, token=new.token, settings=deps.settings)
    except ValidationError as error:
        return await _page(request, user, session, deps, wrong=forms.invalid(error.errors()))
    except Problem as problem:
        return await _page(request, user, session, deps, wrong={"token": problem.detail})
    return redirect_to("/keys#hub")


@router.post("/keys/hub-token/delete")
async def delete_hub_token(request: Request, user: KeysAdmin, session: SessionDep) -> Response:
    await checked_form(request, user)
    await hub_tokens.delete_token(session, tenant=user.caller.tenant)
    return redirect_to("/keys#hub")


@router.post("/keys/buckets")
async def set_bucket(request: Request, user: KeysAdmin, session: SessionDep, deps: ServiceDep) -> Response:
    form = await checked_form(request, user)
    given = {name: value for name, value in forms.values_of(form, NamedBucket.model_fields).items() if value}
    shown = {name: value for name, value in given.items() if name != "secret_access_key"}
    try:
        new = NamedBucket.model_validate({**given, "path_style": "path_style" in given})
        await buckets.store_bucket(session, tenant=user.caller.tenant, name=new.bucket, new=new, settings=deps.settings)
    except ValidationError as error:
        return await _page(request, user, session, deps, of_bucket=shown, wrong=forms.invalid(error.errors()))
    except Problem as problem:
        return await _page(request, user, session, deps, of_bucket=shown, wrong=forms.refused(problem))
    return redirect_to("/keys#buckets")


@router.post("/keys/buckets/{bucket}/delete")
async def delete_bucket(request: Request, bucket: str, user: KeysAdmin, session: SessionDep) -> Response:
    await checked_form(request, user)
    await buckets.delete_bucket(session, tenant=user.caller.tenant, name=bucket)
    return redirect_to("/keys#buckets")


@router.post("/keys/{key_id}/revoke")
async def revoke(request: Request, key_id: str, user: KeysAdmin, session: SessionDep) -> Response:
    await checked_form(request, user)
    await keys_service.revoke_key(session, caller=user.caller, key_id=key_id)
    return redirect_to("/keys")


async def _page(
    request: Request,
    user: User,
    session: AsyncSession,
    deps: Service,
    *,
    cursor: str | None = None,
    created: CreatedKey | None = None,
    values: Mapping[str, Any] = EMPTY,
    of_bucket: Mapping[str, str] | None = None,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    page = await keys_service.list_keys(session, user.caller, query=KeyQuery(cursor=cursor), signer=deps.keyring)
    hub_token = await hub_tokens.view_token(session, tenant=user.caller.tenant, settings=deps.settings)
    return render(
        request, "keys.html", user, status=422 if wrong else 200, keys=page.data, next_cursor=page.next_cursor,
        made=created, hub_token=hub_token, values=values, wrong=wrong or {}, lifetimes=LIFETIMES, now=datetime.now(UTC),
        scopes=[(scope.value, scope.value) for scope in Scope if scope in user.caller.scopes],
        explained=EXPLAINED, buckets=(await buckets.list_buckets(session, tenant=user.caller.tenant)).data,
        of_bucket=of_bucket or {},
    )  # fmt: skip
