"""The dashboard's page of the audit log: who did what to which thing, and when."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from app.audit import router as api
from app.audit.schemas import AuditQuery
from app.audit.service import Action
from app.deps import ServiceDep, SessionDep
from app.ui import forms
from app.ui.pages import Page, render
from app.ui.visitor import AuditReader

PAGES = {"job_": "/jobs/", "cmp_": "/comparisons/", "ds_": "/datasets/", "wh_": "/webhooks/"}
"""Where a thing that an id names is shown, while it is there."""
FILTERS = ("action", "object_id", "key_id")
router = APIRouter(route_class=Page)


@router.get("/audit")
async def audit(
    request: Request,
    visitor: AuditReader,
    session: SessionDep,
    parts: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    values = {name: request.query_params.get(name, "").strip() for name in FILTERS}
    chosen: dict[str, Any] = {name: value for name, value in values.items() if value}
    try:
        query, wrong = AuditQuery(cursor=cursor, **chosen), dict[str, str]()
    except ValidationError as error:
        wrong = forms.invalid(error.errors())
        return render(
            request, "audit.html", visitor, status=422, entries=[], next_cursor=None, values=values, wrong=wrong,
            again="", actions=list(Action), pages_of=PAGES, cursor=None,
        )  # fmt: skip
    page = await api.audit(query, visitor.caller, session, parts)
    return render(
        request, "audit.html", visitor, entries=page.data, next_cursor=page.next_cursor, values=values, wrong=wrong,
        again=urlencode(chosen), actions=list(Action), pages_of=PAGES, cursor=cursor,
    )  # fmt: skip
