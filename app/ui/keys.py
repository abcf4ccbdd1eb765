"""The dashboard's page of API keys, and of the tenant's token for the hub."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import EXPLAINED, Scope
from app.deps import Service, ServiceDep, SessionDep
from app.hub_tokens import service as hub_tokens
from app.hub_tokens.schemas import NewHubToken
from app.keys import router as api
from app.keys.schemas import CreatedKey, KeyQuery, NewKey
from app.ui import forms
from app.ui.pages import Page, render, see
from app.ui.visitor import KeysAdmin, Visitor, form_of
from app.web.problems import Problem

LIFETIMES = {"": "never", "7": "in 7 days", "30": "in 30 days", "90": "in 90 days", "365": "in a year"}
USUAL = (Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.DATASETS_READ, Scope.DATASETS_WRITE)
EMPTY: dict[str, Any] = {"name": "", "days": "90", "scopes": [scope.value for scope in USUAL]}
"""What is ticked in an empty form."""
SENTENCES = {
    ("name", "string_too_short"): "give the key a name",
    ("scopes", "too_short"): "choose at least one scope",
}
router = APIRouter(route_class=Page)


@router.get("/keys")
async def keys(
    request: Request,
    visitor: KeysAdmin,
    session: SessionDep,
    parts: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    return await _page(request, visitor, session, parts, cursor=cursor)


@router.post("/keys")
async def create(request: Request, visitor: KeysAdmin, session: SessionDep, parts: ServiceDep) -> Response:
    """The answer, not a redirect, shows the key: it is nowhere else afterwards."""
    form = await form_of(request, visitor)
    values: dict[str, Any] = {name: str(form.get(name, "")).strip() for name in ("name", "days")}
    values["scopes"] = [str(scope) for scope in form.getlist("scopes")]
    fields = {"name": values["name"], "scopes": values["scopes"]}
    if values["days"] in LIFETIMES and values["days"]:
        fields["expires_at"] = (datetime.now(UTC) + timedelta(days=int(values["days"]))).isoformat()
    try:
        made = await api.create(NewKey.model_validate(fields), visitor.caller, session, parts, Response())
    except ValidationError as error:
        wrong = forms.invalid(error.errors(), sentences=SENTENCES)
        return await _page(request, visitor, session, parts, values=values, wrong=wrong)
    except Problem as problem:
        return await _page(request, visitor, session, parts, values=values, wrong=forms.refused(problem))
    return await _page(request, visitor, session, parts, made=made)


@router.post("/keys/hub-token")
async def set_hub_token(request: Request, visitor: KeysAdmin, session: SessionDep, parts: ServiceDep) -> Response:
    form = await form_of(request, visitor)
    try:
        wanted = NewHubToken(token=str(form.get("token", "")).strip())
        await hub_tokens.keep(session, tenant=visitor.caller.tenant, token=wanted.token, settings=parts.settings)
    except ValidationError as error:
        return await _page(request, visitor, session, parts, wrong=forms.invalid(error.errors()))
    except Problem as problem:
        return await _page(request, visitor, session, parts, wrong={"token": problem.detail})
    return see("/keys#hub")


@router.post("/keys/hub-token/delete")
async def delete_hub_token(request: Request, visitor: KeysAdmin, session: SessionDep) -> Response:
    await form_of(request, visitor)
    await hub_tokens.drop(session, tenant=visitor.caller.tenant)
    return see("/keys#hub")


@router.post("/keys/{key_id}/revoke")
async def revoke(request: Request, key_id: str, visitor: KeysAdmin, session: SessionDep) -> Response:
    await form_of(request, visitor)
    await api.revoke(key_id, visitor.caller, session)
    return see("/keys")


async def _page(
    request: Request,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    *,
    cursor: str | None = None,
    made: CreatedKey | None = None,
    values: Mapping[str, Any] = EMPTY,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    page = await api.list_keys(KeyQuery(cursor=cursor), visitor.caller, session, parts)
    hub_token = await hub_tokens.view(session, tenant=visitor.caller.tenant, settings=parts.settings)
    return render(
        request, "keys.html", visitor, status=422 if wrong else 200, keys=page.data, next_cursor=page.next_cursor,
        made=made, hub_token=hub_token, values=values, wrong=wrong or {}, lifetimes=LIFETIMES, now=datetime.now(UTC),
        scopes=[(scope.value, scope.value) for scope in Scope if scope in visitor.caller.scopes],
        explained=EXPLAINED,
    )  # fmt: skip
