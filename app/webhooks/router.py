"""``/v1/webhooks``: signed messages about jobs, to URLs of the tenant's choice."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.deps import ServiceDep, SessionDep, WebhooksReader, WebhooksWriter
from app.web import problems
from app.web.idempotency import IdempotencyKey
from app.web.paging import Page, PageQuery
from app.web.problems import documented
from app.webhooks import queries, service
from app.webhooks.schemas import (
    DeliveryDetail,
    DeliveryQuery,
    DeliveryView,
    NewWebhook,
    Rotation,
    WebhookChanges,
    WebhookView,
    WebhookWithSecret,
)

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
    new: NewWebhook,
    caller: WebhooksWriter,
    session: SessionDep,
    deps: ServiceDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Tell a URL of jobs. The answer is the only place where the secret ever stands."""
    response.headers["Cache-Control"] = "no-store"
    created = await service.create_webhook_once(session, caller, deps, new=new, idempotency_key=idempotency_key)
    return created.answer(response)


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def list_webhooks(
    query: Annotated[PageQuery, Query()], caller: WebhooksReader, session: SessionDep, deps: ServiceDep
) -> Page[WebhookView]:
    """Webhooks, newest first."""
    return await service.list_webhooks(session, tenant=caller.tenant, query=query, signer=deps.keyring)


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
    webhook_id: str, changes: WebhookChanges, caller: WebhooksWriter, session: SessionDep, deps: ServiceDep
) -> WebhookView:
    """Change the URL, the events, the description; disable or enable it."""
    return WebhookView.of(
        await service.change_webhook(
            session, tenant=caller.tenant, webhook_id=webhook_id, changes=changes, settings=deps.settings
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
    deps: ServiceDep,
    response: Response,
    rotation: Rotation | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """A new secret, shown this once. For a while the one before signs too, so that receivers can change over."""
    response.headers["Cache-Control"] = "no-store"
    created = await service.rotate_secret_once(
        session, caller, deps, webhook_id=webhook_id, rotation=rotation, idempotency_key=idempotency_key
    )
    return created.answer(response)


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
    deps: ServiceDep,
) -> Page[DeliveryView]:
    """Messages to this URL, newest first; finished ones are kept for 30 days."""
    return await service.list_deliveries(
        session, tenant=caller.tenant, webhook_id=webhook_id, query=query, signer=deps.keyring
    )


@router.get("/{webhook_id}/deliveries/{delivery_id}", responses=documented(problems.NOT_FOUND))
async def delivery(webhook_id: str, delivery_id: str, caller: WebhooksReader, session: SessionDep) -> DeliveryDetail:
    """One delivery: what was sent, and every attempt at it."""
    return await service.view_delivery(session, tenant=caller.tenant, webhook_id=webhook_id, delivery_id=delivery_id)


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
