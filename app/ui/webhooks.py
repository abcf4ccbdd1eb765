"""The dashboard's pages of webhooks: who is told of which events, what arrived, and sending it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import FormData

from app.deps import Service, ServiceDep, SessionDep
from app.ui import forms
from app.ui.pages import Page, render, see
from app.ui.visitor import Visitor, WebhooksReader, WebhooksWriter, form_of
from app.web.paging import PageQuery
from app.web.problems import Problem
from app.webhooks import queries
from app.webhooks import router as api
from app.webhooks.schemas import (
    DeliveryQuery,
    DeliveryStatus,
    NewWebhook,
    Rotation,
    WebhookChanges,
    WebhookStatus,
    WebhookWithSecret,
)
from core.ledger.outbox import ANNOUNCED

VERBS = {"started": "starts", "succeeded": "succeeds", "failed": "fails", "cancelled": "is cancelled"}
EVENTS = {kind.value: VERBS[kind.value.removeprefix("job.")] for kind in ANNOUNCED}
GRACE = {"86400": "a day", "604800": "a week", "0": "not at all: the old one has leaked"}
SENTENCES = {
    ("url", "string_too_short"): "give the address that is to be told",
    ("event_types", "too_short"): "choose at least one event",
}
EMPTY: dict[str, Any] = {"url": "", "description": "", "event_types": NewWebhook.model_fields["event_types"].default}
router = APIRouter(prefix="/webhooks", route_class=Page)


@router.get("")
async def webhooks(
    request: Request,
    visitor: WebhooksReader,
    session: SessionDep,
    parts: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    return await _list(request, visitor, session, parts, cursor=cursor)


@router.post("")
async def create(request: Request, visitor: WebhooksWriter, session: SessionDep, parts: ServiceDep) -> Response:
    """The answer, not a redirect, shows the secret: it is nowhere else afterwards."""
    values = _values(await form_of(request, visitor))
    try:
        made = await api.create(NewWebhook.model_validate(values), visitor.caller, session, parts, Response())
    except ValidationError as error:
        wrong = forms.invalid(error.errors(), sentences=SENTENCES)
        return await _list(request, visitor, session, parts, values=values, wrong=wrong)
    except Problem as problem:
        return await _list(request, visitor, session, parts, values=values, wrong=forms.refused(problem))
    return await _one(request, visitor, session, parts, webhook_id=made.id, fresh=made)


@router.get("/{webhook_id}")
async def webhook(
    request: Request,
    webhook_id: str,
    visitor: WebhooksReader,
    session: SessionDep,
    parts: ServiceDep,
    status: str = "",
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    chosen = DeliveryStatus(status) if status in set(DeliveryStatus) else None
    query = DeliveryQuery(status=chosen, cursor=cursor)
    return await _one(request, visitor, session, parts, webhook_id=webhook_id, query=query)


@router.post("/{webhook_id}/change")
async def change(
    request: Request, webhook_id: str, visitor: WebhooksWriter, session: SessionDep, parts: ServiceDep
) -> Response:
    values = _values(await form_of(request, visitor))
    try:
        await api.change(webhook_id, WebhookChanges.model_validate(values), visitor.caller, session, parts)
    except ValidationError as error:
        wrong = forms.invalid(error.errors(), sentences=SENTENCES)
    except Problem as problem:
        if not problem.errors:
            raise
        wrong = forms.refused(problem)
    else:
        return see(f"/webhooks/{webhook_id}")
    return await _one(request, visitor, session, parts, webhook_id=webhook_id, values=values, wrong=wrong)


@router.post("/{webhook_id}/status/{wanted}")
async def turn(
    request: Request,
    webhook_id: str,
    wanted: WebhookStatus,
    visitor: WebhooksWriter,
    session: SessionDep,
    parts: ServiceDep,
) -> Response:
    """Enable or disable it."""
    await form_of(request, visitor)
    await api.change(webhook_id, WebhookChanges(status=wanted), visitor.caller, session, parts)
    return see(f"/webhooks/{webhook_id}")


@router.post("/{webhook_id}/rotate")
async def rotate(
    request: Request, webhook_id: str, visitor: WebhooksWriter, session: SessionDep, parts: ServiceDep
) -> Response:
    """As when it was made: the answer shows the secret, this once."""
    form = await form_of(request, visitor)
    keep = str(form.get("keep", ""))
    rotation = Rotation(keep_previous_s=int(keep)) if keep in GRACE else Rotation()
    fresh = await api.rotate_secret(webhook_id, visitor.caller, session, parts, Response(), rotation)
    return await _one(request, visitor, session, parts, webhook_id=webhook_id, fresh=fresh)


@router.post("/{webhook_id}/ping")
async def ping(request: Request, webhook_id: str, visitor: WebhooksWriter, session: SessionDep) -> Response:
    await form_of(request, visitor)
    await api.ping(webhook_id, visitor.caller, session)
    return see(f"/webhooks/{webhook_id}")


@router.post("/{webhook_id}/delete")
async def remove(request: Request, webhook_id: str, visitor: WebhooksWriter, session: SessionDep) -> Response:
    await form_of(request, visitor)
    await api.remove(webhook_id, visitor.caller, session)
    return see("/webhooks")


@router.get("/{webhook_id}/deliveries/{delivery_id}")
async def delivery(
    request: Request, webhook_id: str, delivery_id: str, visitor: WebhooksReader, session: SessionDep
) -> Response:
    """What was sent, and every attempt at it."""
    target = await api.get(webhook_id, visitor.caller, session)
    sent = await api.delivery(webhook_id, delivery_id, visitor.caller, session)
    return render(request, "delivery.html", visitor, webhook=target, delivery=sent)


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver")
async def redeliver(
    request: Request, webhook_id: str, delivery_id: str, visitor: WebhooksWriter, session: SessionDep
) -> Response:
    await form_of(request, visitor)
    await api.redeliver(webhook_id, delivery_id, visitor.caller, session)
    return see(f"/webhooks/{webhook_id}/deliveries/{delivery_id}")


def _said_of(events: Sequence[str]) -> str:
    """``starts, fails or is cancelled``."""
    verbs = [verb for kind, verb in EVENTS.items() if kind in events]
    return " or ".join([", ".join(verbs[:-1]), verbs[-1]] if len(verbs) > 1 else verbs)


def _values(form: FormData) -> dict[str, Any]:
    texts = {name: str(form.get(name, "")).strip() for name in ("url", "description")}
    return {**texts, "event_types": [str(kind) for kind in form.getlist("event_types")]}


async def _list(
    request: Request,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    *,
    cursor: str | None = None,
    values: Mapping[str, Any] = EMPTY,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    page = await api.list_webhooks(PageQuery(cursor=cursor), visitor.caller, session, parts)
    ids = [webhook.id for webhook in page.data]
    newest = await queries.newest_deliveries(session, tenant=visitor.caller.tenant, webhook_ids=ids)
    return render(
        request, "webhooks.html", visitor, status=422 if wrong else 200, webhooks=page.data, newest=newest,
        next_cursor=page.next_cursor, values=values, wrong=wrong or {}, events=EVENTS.items(),
        http=parts.settings.webhook_allow_http,
    )  # fmt: skip


async def _one(
    request: Request,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    *,
    webhook_id: str,
    query: DeliveryQuery | None = None,
    fresh: WebhookWithSecret | None = None,
    values: Mapping[str, Any] | None = None,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    query = query or DeliveryQuery()
    found = await api.get(webhook_id, visitor.caller, session)
    page = await api.deliveries(webhook_id, query, visitor.caller, session, parts)
    again = urlencode({"status": query.status.value} if query.status else {})
    return render(
        request, "webhook.html", visitor, status=422 if wrong else 200, webhook=found, deliveries=page.data,
        next_cursor=page.next_cursor, again=again, query=query, statuses=list(DeliveryStatus), fresh=fresh,
        waiting=any(one.status is DeliveryStatus.PENDING for one in page.data), values=values or found.model_dump(),
        wrong=wrong or {}, events=EVENTS.items(), grace=GRACE, said_of=_said_of,
    )  # fmt: skip
