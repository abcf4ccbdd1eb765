"""The dashboard's page of the audit log."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from app.audit.schemas import AuditQuery
from app.audit.service import Action, list_entries
from app.deps import ServiceDep, SessionDep
from app.ui import forms
from app.ui.pages import Page, render
from app.ui.sign_in import AuditReader

PAGES = {"job_": "/jobs/", "cmp_": "/comparisons/", "ds_": "/datasets/", "wh_": "/webhooks/"}
"""Prefix of an id → path of the page that shows the object."""
FILTERS = ("action", "object_id", "key_id")
router = APIRouter(route_class=Page)


@router.get("/audit")
async def audit(
    request: Request,
    user: AuditReader,
    session: SessionDep,
    deps: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    values = {name: request.query_params.get(name, "").strip() for name in FILTERS}
    filters: dict[str, Any] = {name: value for name, value in values.items() if value}
    try:
        query, wrong = AuditQuery(cursor=cursor, **filters), dict[str, str]()
    except ValidationError as error:
        wrong = forms.invalid(error.errors())
        return render(
            request, "audit.html", user, status=422, entries=[], next_cursor=None, values=values, wrong=wrong,
            again="", actions=list(Action), pages_of=PAGES, cursor=None,
        )  # fmt: skip
    page = await list_entries(session, tenant=user.caller.tenant, query=query, signer=deps.keyring)
    return render(
        request, "audit.html", user, entries=page.data, next_cursor=page.next_cursor, values=values, wrong=wrong,
        again=urlencode(filters), actions=list(Action), pages_of=PAGES, cursor=cursor,
    )  # fmt: skip
