"""``/v1/webhooks``: signed messages about jobs, to URLs of the tenant's choice."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.db.pipeline import joined
from app.db.tenancy import owned
from app.deps import ServiceDep, SessionDep, WebhooksReader, WebhooksWriter
from app.web import problems
from app.web.idempotency import IdempotencyKey, Made, Once
from app.web.paging import Page, PageQuery, page_of
from app.web.problems import documented
from app.webhooks import queries, service
from app.webhooks.schemas import (
    DeliveryAttempt,
    DeliveryDetail,
    DeliveryQuery,
    DeliveryView,
    NewWebhook,
    Rotation,
    WebhookChanges,
    WebhookView,
    WebhookWithSecret,
)
from core.ledger.tables import Webhook, WebhookDelivery

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


@router.post(
    "",
    status_code=201,
    response_model=WebhookWithSecret,
    responses=documented(
        problems.WEBHOOK_URL_REFUSED,
        problems.TOO_MANY_WEBHOOKS,
        problems.MALFORMED_REQUEST,
        problems.BODY_TOO_LARGE,
        *problems.REPEATED,
    ),
)
async def create(
    wanted: NewWebhook,
    caller: WebhooksWriter,
    session: SessionDep,
    parts: ServiceDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Tell a URL of jobs. The answer is the only place where the secret ever stands."""

    async def make() -> Made:
        webhook, secret = await service.create_webhook(
            session, tenant=caller.tenant, wanted=wanted, seal=parts.seal, settings=parts.settings
        )
        view = WebhookWithSecret(**WebhookView.of(webhook).model_dump(), secret=secret)
        return Made(view, f"/v1/webhooks/{webhook.id}")

    response.headers["Cache-Control"] = "no-store"
    body = wanted.model_dump(mode="json")
    once = Once.of(caller.tenant, idempotency_key, "POST /v1/webhooks", body, seal=parts.seal)
    return await once.answer(await joined(session), response, make)


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def list_webhooks(
    query: Annotated[PageQuery, Query()], caller: WebhooksReader, session: SessionDep, parts: ServiceDep
) -> Page[WebhookView]:
    """Webhooks, newest first."""
    rows, cursor = await page_of(session, owned(Webhook, caller.tenant), Webhook, query=query, keyring=parts.keyring)
    return Page(data=[WebhookView.of(row) for row in rows], has_more=cursor is not None, next_cursor=cursor)


@router.get("/{webhook_id}", responses=documented(problems.NOT_FOUND))
async def get(webhook_id: str, caller: WebhooksReader, session: SessionDep) -> WebhookView:
    """One webhook: its URL, events and state. Its secret was shown when it was made."""
    return WebhookView.of(await queries.get_webhook(session, tenant=caller.tenant, webhook_id=webhook_id))


@router.patch(
    "/{webhook_id}",
    responses=documented(
        problems.NOT_FOUND, problems.WEBHOOK_URL_REFUSED, problems.MALFORMED_REQUEST, problems.BODY_TOO_LARGE
    ),
)
async def change(
    webhook_id: str, changes: WebhookChanges, caller: WebhooksWriter, session: SessionDep, parts: ServiceDep
) -> WebhookView:
    """Change the URL, the events, the description; disable or enable it."""
    return WebhookView.of(
        await service.change_webhook(
            session, tenant=caller.tenant, webhook_id=webhook_id, changes=changes, settings=parts.settings
        )
    )


@router.delete("/{webhook_id}", status_code=204, responses=documented(problems.NOT_FOUND))
async def remove(webhook_id: str, caller: WebhooksWriter, session: SessionDep) -> None:
    """Remove it with its deliveries, sent or not."""
    await service.remove_webhook(session, tenant=caller.tenant, webhook_id=webhook_id)


@router.post(
    "/{webhook_id}/rotate-secret",
    response_model=WebhookWithSecret,
    responses=documented(problems.NOT_FOUND, problems.MALFORMED_REQUEST, problems.BODY_TOO_LARGE, *problems.REPEATED),
)
async def rotate_secret(
    webhook_id: str,
    caller: WebhooksWriter,
    session: SessionDep,
    parts: ServiceDep,
    response: Response,
    rotation: Rotation | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """A new secret, shown this once. For a while the one before signs too, so that receivers can change over."""
    keep_previous = timedelta(seconds=(rotation or Rotation()).keep_previous_s)

    async def make() -> Made:
        webhook, secret = await service.rotate_secret(
            session, tenant=caller.tenant, webhook_id=webhook_id, keep_previous=keep_previous, seal=parts.seal
        )
        return Made(WebhookWithSecret(**WebhookView.of(webhook).model_dump(), secret=secret), None, status=200)

    response.headers["Cache-Control"] = "no-store"
    operation, body = f"POST /v1/webhooks/{webhook_id}/rotate-secret", {"s": keep_previous.total_seconds()}
    once = Once.of(caller.tenant, idempotency_key, operation, body, seal=parts.seal)
    return await once.answer(await joined(session), response, make)


@router.post("/{webhook_id}/ping", status_code=202, responses=documented(problems.NOT_FOUND, problems.WEBHOOK_DISABLED))
async def ping(webhook_id: str, caller: WebhooksWriter, session: SessionDep) -> DeliveryView:
    """Send a `webhook.ping`; what came of it is in the delivery."""
    return DeliveryView.of(await service.ping(session, tenant=caller.tenant, webhook_id=webhook_id))


@router.get("/{webhook_id}/deliveries", responses=documented(problems.NOT_FOUND, problems.INVALID_CURSOR))
async def deliveries(
    webhook_id: str,
    query: Annotated[DeliveryQuery, Query()],
    caller: WebhooksReader,
    session: SessionDep,
    parts: ServiceDep,
) -> Page[DeliveryView]:
    """Messages to this URL, newest first; finished ones are kept for 30 days."""
    webhook = await queries.get_webhook(session, tenant=caller.tenant, webhook_id=webhook_id)
    statement = queries.deliveries_of(caller.tenant, webhook.id, query)
    rows, cursor = await page_of(session, statement, WebhookDelivery, query=query, keyring=parts.keyring)
    return Page(data=[DeliveryView.of(row) for row in rows], has_more=cursor is not None, next_cursor=cursor)


@router.get("/{webhook_id}/deliveries/{delivery_id}", responses=documented(problems.NOT_FOUND))
async def delivery(webhook_id: str, delivery_id: str, caller: WebhooksReader, session: SessionDep) -> DeliveryDetail:
    """One delivery: what was sent, and every attempt at it."""
    found = await queries.get_delivery(session, tenant=caller.tenant, webhook_id=webhook_id, delivery_id=delivery_id)
    attempts = await queries.attempts_at(session, tenant=caller.tenant, delivery_id=found.id)
    log = [DeliveryAttempt.of(attempt) for attempt in attempts]
    return DeliveryDetail(**DeliveryView.of(found).model_dump(), payload=found.payload, log=log)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    responses=documented(problems.NOT_FOUND, problems.WEBHOOK_DISABLED),
)
async def redeliver(webhook_id: str, delivery_id: str, caller: WebhooksWriter, session: SessionDep) -> DeliveryView:
    """Send the same message again, under the same `webhook-id`."""
    return DeliveryView.of(
        await service.redeliver(session, tenant=caller.tenant, webhook_id=webhook_id, delivery_id=delivery_id)
    )
