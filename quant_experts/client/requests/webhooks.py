"""Requests about webhooks and their deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quant_experts.client.requests.base import Params, Request, path_part, read_as, read_nothing, without_none
from quant_experts.client.views.base import Page
from quant_experts.client.views.webhooks import DeliveryDetail, DeliveryView, WebhookView, WebhookWithSecret


def create_webhook(
    *,
    url: str,
    event_types: Sequence[str] | None,
    format: str | None,  # noqa: A002 -- the name of the field
    description: str | None,
) -> Request[WebhookWithSecret]:
    # As with a key: a second one would leave the first valid, with a secret that nobody knows.
    body = without_none(url=url, event_types=event_types and list(event_types), format=format, description=description)
    return Request("POST", "/v1/webhooks", read_as(WebhookWithSecret), json=body, repeatable=False)


def get_webhook(webhook_id: str) -> Request[WebhookView]:
    return Request("GET", _webhook(webhook_id), read_as(WebhookView))


def list_webhooks(*, page_size: int = 100) -> Request[Page[WebhookView]]:
    return Request("GET", "/v1/webhooks", read_as(Page[WebhookView]), params=[("limit", page_size)])


def change_webhook(webhook_id: str, **changes: Any) -> Request[WebhookView]:
    return Request("PATCH", _webhook(webhook_id), read_as(WebhookView), json=without_none(**changes))


def rotate_secret(webhook_id: str, *, keep_previous_s: int | None) -> Request[WebhookWithSecret]:
    # A second rotation would void the secret that receivers hold.
    path = f"{_webhook(webhook_id)}/rotate-secret"
    body = without_none(keep_previous_s=keep_previous_s)
    return Request("POST", path, read_as(WebhookWithSecret), json=body, repeatable=False)


def ping_webhook(webhook_id: str) -> Request[DeliveryView]:
    return Request("POST", f"{_webhook(webhook_id)}/ping", read_as(DeliveryView), repeatable=False)


def delete_webhook(webhook_id: str) -> Request[None]:
    return Request("DELETE", _webhook(webhook_id), read_nothing, repeatable=False)


def list_deliveries(webhook_id: str, *, status: str | None, page_size: int = 100) -> Request[Page[DeliveryView]]:
    params: Params = [("limit", page_size), *([("status", status)] if status is not None else [])]
    return Request("GET", f"{_webhook(webhook_id)}/deliveries", read_as(Page[DeliveryView]), params=params)


def get_delivery(webhook_id: str, delivery_id: str) -> Request[DeliveryDetail]:
    return Request("GET", _delivery(webhook_id, delivery_id), read_as(DeliveryDetail))


def redeliver(webhook_id: str, delivery_id: str) -> Request[DeliveryView]:
    path = f"{_delivery(webhook_id, delivery_id)}/redeliver"
    return Request("POST", path, read_as(DeliveryView), repeatable=False)


def _webhook(webhook_id: str) -> str:
    return f"/v1/webhooks/{path_part(webhook_id)}"


def _delivery(webhook_id: str, delivery_id: str) -> str:
    return f"{_webhook(webhook_id)}/deliveries/{path_part(delivery_id)}"
