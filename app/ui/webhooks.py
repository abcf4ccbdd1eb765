"""The dashboard's pages of webhooks and their deliveries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import FormData

from app.deps import Service, ServiceDep, SessionDep
from app.ui import forms
from app.ui.pages import Page, redirect_to, render
from app.ui.sign_in import User, WebhooksReader, WebhooksWriter, checked_form
from app.web.paging import PageQuery
from app.web.problems import Problem
from app.webhooks import queries, service
from app.webhooks.schemas import (
    DeliveryQuery,
    DeliveryStatus,
    NewWebhook,
    Rotation,
    WebhookChanges,
    WebhookStatus,
    WebhookView,
)
from core.contract.webhook_format import WebhookFormat
from core.ledger.outbox import ANNOUNCED

VERBS = {
    "started": "starts", "succeeded": "succeeds", "failed": "fails", "cancelled": "is cancelled",
    "pushed": "is pushed", "push_failed": "cannot be pushed",
}  # fmt: skip
EVENTS = {kind.value: VERBS[kind.value.removeprefix("job.")] for kind in ANNOUNCED}
GRACE = {"86400": "a day", "604800": "a week", "0": "not at all: the old one has leaked"}
SENTENCES = {
    ("url", "string_too_short"): "give the address that is to be told",
    ("event_types", "too_short"): "choose at least one event",
}
FORMATS = {
    WebhookFormat.STANDARD: "JSON, signed (Standard Webhooks)",
    WebhookFormat.SLACK: "a line of text for Slack",
    WebhookFormat.TEAMS: "a line of text for Teams",
}
EMPTY: dict[str, Any] = {
    "url": "", "description": "", "format": WebhookFormat.STANDARD.value,
    "event_types": NewWebhook.model_fields["event_types"].default,
}  # fmt: skip
router = APIRouter(prefix="/webhooks", route_class=Page)


@router.get("")
async def webhooks(
    request: Request,
    user: WebhooksReader,
    session: SessionDep,
    deps: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    return await _list(request, user, session, deps, cursor=cursor)


@router.post("")
async def create(request: Request, user: WebhooksWriter, session: SessionDep, deps: ServiceDep) -> Response:
    """The response shows the secret instead of redirecting: the secret is not shown again."""
    values = _values(await checked_form(request, user))
    try:
        webhook, secret = await service.create_webhook(
            session,
            tenant=user.caller.tenant,
            new=NewWebhook.model_validate(values),
            seal=deps.seal,
            settings=deps.settings,
        )
    except ValidationError as error:
        wrong = forms.invalid(error.errors(), sentences=SENTENCES)
        return await _list(request, user, session, deps, values=values, wrong=wrong)
    except Problem as problem:
        return await _list(request, user, session, deps, values=values, wrong=forms.refused(problem))
    return await _one(request, user, session, deps, webhook_id=webhook.id, secret=secret)


@router.get("/{webhook_id}")
async def webhook(
    request: Request,
    webhook_id: str,
    user: WebhooksReader,
    session: SessionDep,
    deps: ServiceDep,
    status: str = "",
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    filter_status = DeliveryStatus(status) if status in set(DeliveryStatus) else None
    query = DeliveryQuery(status=filter_status, cursor=cursor)
    return await _one(request, user, session, deps, webhook_id=webhook_id, query=query)


@router.post("/{webhook_id}/change")
async def change(
    request: Request, webhook_id: str, user: WebhooksWriter, session: SessionDep, deps: ServiceDep
) -> Response:
    values = _values(await checked_form(request, user))
    try:
        await _change(session, user, deps, webhook_id, WebhookChanges.model_validate(values))
    except ValidationError as error:
        wrong = forms.invalid(error.errors(), sentences=SENTENCES)
    except Problem as problem:
        if not problem.errors:
            raise
        wrong = forms.refused(problem)
    else:
        return redirect_to(f"/webhooks/{webhook_id}")
    return await _one(request, user, session, deps, webhook_id=webhook_id, values=values, wrong=wrong)


@router.post("/{webhook_id}/status/{status}")
async def turn(
    request: Request,
    webhook_id: str,
    status: WebhookStatus,
    user: WebhooksWriter,
    session: SessionDep,
    deps: ServiceDep,
) -> Response:
    """Enable or disable it."""
    await checked_form(request, user)
    await _change(session, user, deps, webhook_id, WebhookChanges(status=status))
    return redirect_to(f"/webhooks/{webhook_id}")


@router.post("/{webhook_id}/rotate")
async def rotate(
    request: Request, webhook_id: str, user: WebhooksWriter, session: SessionDep, deps: ServiceDep
) -> Response:
    """The response shows the new secret, as ``create``."""
    form = await checked_form(request, user)
    keep = str(form.get("keep", ""))
    rotation = Rotation(keep_previous_s=int(keep)) if keep in GRACE else Rotation()
    _, secret = await service.rotate_secret(
        session,
        tenant=user.caller.tenant,
        webhook_id=webhook_id,
        keep_previous=timedelta(seconds=rotation.keep_previous_s),
        seal=deps.seal,
    )
    return await _one(request, user, session, deps, webhook_id=webhook_id, secret=secret)


@router.post("/{webhook_id}/ping")
async def ping(request: Request, webhook_id: str, user: WebhooksWriter, session: SessionDep) -> Response:
    await checked_form(request, user)
    await service.ping(session, tenant=user.caller.tenant, webhook_id=webhook_id)
    return redirect_to(f"/webhooks/{webhook_id}")


@router.post("/{webhook_id}/delete")
async def remove(request: Request, webhook_id: str, user: WebhooksWriter, session: SessionDep) -> Response:
    await checked_form(request, user)
    await service.remove_webhook(session, tenant=user.caller.tenant, webhook_id=webhook_id)
    return redirect_to("/webhooks")


@router.get("/{webhook_id}/deliveries/{delivery_id}")
async def delivery(
    request: Request, webhook_id: str, delivery_id: str, user: WebhooksReader, session: SessionDep
) -> Response:
    """What was sent, and every attempt at it."""
    tenant = user.caller.tenant
    webhook = WebhookView.of(await queries.get_webhook(session, tenant=tenant, webhook_id=webhook_id))
    view = await service.view_delivery(session, tenant=tenant, webhook_id=webhook_id, delivery_id=delivery_id)
    return render(request, "delivery.html", user, webhook=webhook, delivery=view)


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver")
async def redeliver(
    request: Request, webhook_id: str, delivery_id: str, user: WebhooksWriter, session: SessionDep
) -> Response:
    await checked_form(request, user)
    await service.redeliver(session, tenant=user.caller.tenant, webhook_id=webhook_id, delivery_id=delivery_id)
    return redirect_to(f"/webhooks/{webhook_id}/deliveries/{delivery_id}")


async def _change(session: AsyncSession, user: User, deps: Service, webhook_id: str, changes: WebhookChanges) -> None:
    await service.change_webhook(
        session, tenant=user.caller.tenant, webhook_id=webhook_id, changes=changes, settings=deps.settings
    )


def _said_of(events: Sequence[str]) -> str:
    """``starts, fails or is cancelled``."""
    verbs = [verb for kind, verb in EVENTS.items() if kind in events]
    return " or ".join([", ".join(verbs[:-1]), verbs[-1]] if len(verbs) > 1 else verbs)


def _values(form: FormData) -> dict[str, Any]:
    texts = {name: str(form.get(name, "")).strip() for name in ("url", "description", "format") if name in form}
    return {**texts, "event_types": [str(kind) for kind in form.getlist("event_types")]}


async def _list(
    request: Request,
    user: User,
    session: AsyncSession,
    deps: Service,
    *,
    cursor: str | None = None,
    values: Mapping[str, Any] = EMPTY,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    page = await service.list_webhooks(
        session, tenant=user.caller.tenant, query=PageQuery(cursor=cursor), signer=deps.keyring
    )
    ids = [webhook.id for webhook in page.data]
    newest = await queries.newest_deliveries(session, tenant=user.caller.tenant, webhook_ids=ids)
    return render(
        request, "webhooks.html", user, status=422 if wrong else 200, webhooks=page.data, newest=newest,
        next_cursor=page.next_cursor, values=values, wrong=wrong or {}, events=EVENTS.items(), formats=FORMATS.items(),
        http=deps.settings.webhook_allow_http,
    )  # fmt: skip


async def _one(
    request: Request,
    user: User,
    session: AsyncSession,
    deps: Service,
    *,
    webhook_id: str,
    query: DeliveryQuery | None = None,
    secret: str | None = None,
    values: Mapping[str, Any] | None = None,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    query = query or DeliveryQuery()
    tenant = user.caller.tenant
    view = WebhookView.of(await queries.get_webhook(session, tenant=tenant, webhook_id=webhook_id))
    page = await service.list_deliveries(
        session, tenant=tenant, webhook_id=webhook_id, query=query, signer=deps.keyring
    )
    again = urlencode({"status": query.status.value} if query.status else {})
    return render(
        request, "webhook.html", user, status=422 if wrong else 200, webhook=view, deliveries=page.data,
        next_cursor=page.next_cursor, again=again, query=query, statuses=list(DeliveryStatus), secret=secret,
        waiting=any(one.status is DeliveryStatus.PENDING for one in page.data), values=values or view.model_dump(),
        wrong=wrong or {}, events=EVENTS.items(), formats=FORMATS.items(), grace=GRACE, said_of=_said_of,
    )  # fmt: skip
