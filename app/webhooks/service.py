"""Create, change and delete webhooks, and queue deliveries. The keeper sends them."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller
from app.access.quotas import lock_tenant
from app.audit.service import Action, note
from app.db.pipeline import transaction_of
from app.db.tenancy import owned
from app.deps import Service
from app.web import problems
from app.web.idempotency import Created, Idempotency, Outcome
from app.web.paging import Page, PageQuery, Signer, as_page, page_of
from app.web.problems import Problem
from app.webhooks.queries import attempts_at, count_webhooks, deliveries_of, get_delivery, get_webhook
from app.webhooks.schemas import (
    DeliveryAttempt,
    DeliveryDetail,
    DeliveryQuery,
    DeliveryStatus,
    DeliveryView,
    NewWebhook,
    Rotation,
    WebhookChanges,
    WebhookStatus,
    WebhookView,
    WebhookWithSecret,
)
from core.contract.ids import new_id
from core.contract.webhook_format import WebhookFormat
from core.contract.webhook_url import BadUrl, read_url
from core.ledger.outbox import PING
from core.ledger.tables import Webhook, WebhookDelivery
from core.secret import Seal
from core.settings import Settings

SECRET_BYTES = 32


async def create_webhook_once(
    session: AsyncSession, caller: Caller, deps: Service, *, new: NewWebhook, idempotency_key: str | None
) -> Outcome:
    """Create a webhook; a repeated request gets the same one. Raises Problem as ``create_webhook``."""

    async def create() -> Created:
        webhook, secret = await create_webhook(
            session, tenant=caller.tenant, new=new, seal=deps.seal, settings=deps.settings
        )
        return Created(_with_secret(webhook, secret), f"/v1/webhooks/{webhook.id}")

    body = new.model_dump(mode="json")
    idempotency = Idempotency.of(caller.tenant, idempotency_key, "POST /v1/webhooks", body, seal=deps.seal)
    return await idempotency.run(await transaction_of(session), create)


async def rotate_secret_once(
    session: AsyncSession,
    caller: Caller,
    deps: Service,
    *,
    webhook_id: str,
    rotation: Rotation | None,
    idempotency_key: str | None,
) -> Outcome:
    """Rotate the secret; a repeated request gets the same one. Raises Problem as ``rotate_secret``."""
    keep_previous = timedelta(seconds=(rotation or Rotation()).keep_previous_s)

    async def create() -> Created:
        webhook, secret = await rotate_secret(
            session, tenant=caller.tenant, webhook_id=webhook_id, keep_previous=keep_previous, seal=deps.seal
        )
        return Created(_with_secret(webhook, secret), None, status=200)

    operation, body = f"POST /v1/webhooks/{webhook_id}/rotate-secret", {"s": keep_previous.total_seconds()}
    idempotency = Idempotency.of(caller.tenant, idempotency_key, operation, body, seal=deps.seal)
    return await idempotency.run(await transaction_of(session), create)


def _with_secret(webhook: Webhook, secret: str) -> WebhookWithSecret:
    return WebhookWithSecret(**WebhookView.of(webhook).model_dump(), secret=secret)


async def list_webhooks(session: AsyncSession, *, tenant: str, query: PageQuery, signer: Signer) -> Page[WebhookView]:
    """Newest first. Raises Problem for a cursor of another listing."""
    rows, cursor = await page_of(session, owned(Webhook, tenant), Webhook, query=query, signer=signer)
    return as_page(rows, cursor, WebhookView.of)


async def list_deliveries(
    session: AsyncSession, *, tenant: str, webhook_id: str, query: DeliveryQuery, signer: Signer
) -> Page[DeliveryView]:
    """Newest first. Raises Problem 404, and for a cursor of another listing."""
    webhook = await get_webhook(session, tenant=tenant, webhook_id=webhook_id)
    statement = deliveries_of(tenant, webhook.id, query)
    rows, cursor = await page_of(session, statement, WebhookDelivery, query=query, signer=signer)
    return as_page(rows, cursor, DeliveryView.of)


async def view_delivery(session: AsyncSession, *, tenant: str, webhook_id: str, delivery_id: str) -> DeliveryDetail:
    """With every attempt at it. Raises Problem 404."""
    row = await get_delivery(session, tenant=tenant, webhook_id=webhook_id, delivery_id=delivery_id)
    attempts = await attempts_at(session, tenant=tenant, delivery_id=row.id)
    log = [DeliveryAttempt.of(attempt) for attempt in attempts]
    return DeliveryDetail(**DeliveryView.of(row).model_dump(), payload=row.payload, log=log)


async def create_webhook(
    session: AsyncSession, *, tenant: str, new: NewWebhook, seal: Seal, settings: Settings
) -> tuple[Webhook, str]:
    """The row and the secret. Raises Problem for a URL that is refused, or beyond the number that a tenant may have."""
    _check_url(new.url, settings)
    await lock_tenant(session, tenant)
    if await count_webhooks(session, tenant=tenant) >= settings.max_webhooks:
        raise Problem(problems.TOO_MANY_WEBHOOKS, f"at most {settings.max_webhooks}: remove one, or change one")
    webhook_id, secret = new_id("wh"), new_secret()
    webhook = Webhook(
        id=webhook_id,
        tenant=tenant,
        url=new.url,
        event_types=list(new.event_types),
        format=new.format.value,
        description=new.description,
        secret=seal.seal(secret, row=webhook_id),
    )
    session.add(webhook)
    await session.flush()
    # Who knows the address of a chat's webhook can write there: the log has its host alone.
    address = new.url if new.format is WebhookFormat.STANDARD else f"https://{urlsplit(new.url).hostname}/…"
    await note(session, Action.WEBHOOK_CREATED, webhook_id, url=address)
    await session.refresh(webhook)
    return webhook, secret


async def change_webhook(
    session: AsyncSession, *, tenant: str, webhook_id: str, changes: WebhookChanges, settings: Settings
) -> Webhook:
    """Raises Problem 404, or 422 for a URL that is refused."""
    webhook = await get_webhook(session, tenant=tenant, webhook_id=webhook_id, lock=True)
    if changes.url is not None:
        _check_url(changes.url, settings)
        webhook.url = changes.url
    if changes.event_types is not None:
        webhook.event_types = list(changes.event_types)
    if changes.format is not None:
        webhook.format = changes.format.value
    if changes.description is not None:
        webhook.description = changes.description
    if changes.status is not None:
        webhook.status = changes.status.value
        webhook.disabled_reason = None if changes.status is WebhookStatus.ENABLED else "disabled by its owner"
        webhook.given_up_in_a_row = 0
    await note(session, Action.WEBHOOK_CHANGED, webhook_id, changed=sorted(changes.model_fields_set))
    return await _changed(session, webhook)


async def rotate_secret(
    session: AsyncSession, *, tenant: str, webhook_id: str, keep_previous: timedelta, seal: Seal
) -> tuple[Webhook, str]:
    """Set a new secret. The previous one signs too for ``keep_previous``. Raises Problem 404."""
    webhook = await get_webhook(session, tenant=tenant, webhook_id=webhook_id, lock=True)
    secret = new_secret()
    webhook.previous_secret = webhook.secret if keep_previous else None
    webhook.previous_until = func.clock_timestamp() + keep_previous if keep_previous else None
    webhook.secret = seal.seal(secret, row=webhook.id)
    await note(session, Action.WEBHOOK_SECRET_ROTATED, webhook_id)
    return await _changed(session, webhook), secret


async def remove_webhook(session: AsyncSession, *, tenant: str, webhook_id: str) -> None:
    """With its deliveries. Raises Problem 404."""
    await session.delete(await get_webhook(session, tenant=tenant, webhook_id=webhook_id, lock=True))
    await note(session, Action.WEBHOOK_DELETED, webhook_id)


async def ping(session: AsyncSession, *, tenant: str, webhook_id: str) -> WebhookDelivery:
    """Queue a test message. Raises Problem 404, or 409 when the webhook is disabled."""
    webhook = await get_webhook(session, tenant=tenant, webhook_id=webhook_id, lock=True)
    _check_enabled(webhook)
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    delivery = WebhookDelivery(
        id=new_id("whd"),
        webhook_id=webhook.id,
        tenant=tenant,
        message_id=new_id("evt"),
        event_type=PING,
        payload={"type": PING, "timestamp": now, "data": {"webhook": webhook.id}},
    )
    session.add(delivery)
    await session.flush()
    await note(session, Action.WEBHOOK_PINGED, webhook_id)
    await session.refresh(delivery)
    return delivery


async def redeliver(session: AsyncSession, *, tenant: str, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    """Queue the same message again, with a new retry schedule. Raises Problem 404, 409 as ``ping``."""
    _check_enabled(await get_webhook(session, tenant=tenant, webhook_id=webhook_id, lock=True))
    delivery = await get_delivery(session, tenant=tenant, webhook_id=webhook_id, delivery_id=delivery_id, lock=True)
    delivery.status = DeliveryStatus.PENDING.value
    delivery.step = 0
    delivery.due_at = func.clock_timestamp()
    delivery.finished_at = None
    await note(session, Action.WEBHOOK_REDELIVERED, delivery_id)
    await session.flush()
    await session.refresh(delivery)
    return delivery


def new_secret() -> str:
    """A secret in the format of Standard Webhooks: ``whsec_`` and base64 of 32 random bytes."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


async def _changed(session: AsyncSession, webhook: Webhook) -> Webhook:
    webhook.updated_at = func.clock_timestamp()
    await session.flush()
    await session.refresh(webhook)
    return webhook


def _check_url(url: str, settings: Settings) -> None:
    try:
        read_url(url, allow_http=settings.webhook_allow_http, allow_private=settings.webhook_allow_private)
    except BadUrl as error:
        raise Problem(
            problems.WEBHOOK_URL_REFUSED, f"/url: {error}", errors=[{"pointer": "/url", "detail": str(error)}]
        ) from None


def _check_enabled(webhook: Webhook) -> None:
    if webhook.status != WebhookStatus.ENABLED:
        reason = webhook.disabled_reason or "disabled"
        raise Problem(problems.WEBHOOK_DISABLED, f"webhook {webhook.id}: {reason}; PATCH its status to enabled first")
