"""Webhooks: signed messages about jobs, and the log of their deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from quant_experts.client import calls
from quant_experts.client.operation import Awaited, Blocking, Operations, listing, operation
from quant_experts.client.steps import Steps, Stream
from quant_experts.client.views import DeliveryDetail, DeliveryView, WebhookView, WebhookWithSecret


class WebhookOperations(Operations):
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @operation
    def create(
        self, url: str, *, event_types: Sequence[str] | None = None, description: str | None = None
    ) -> Steps[WebhookWithSecret]:
        """The answer is the only place where the secret ever stands."""
        return self._send(calls.create_webhook(url=url, event_types=event_types, description=description))

    @operation
    def get(self, webhook_id: str) -> Steps[WebhookView]:
        return self._send(calls.get_webhook(webhook_id))

    @listing
    def list(self) -> Stream[WebhookView]:
        """Webhooks, newest first."""
        return self._pages(calls.list_webhooks())

    @operation
    def change(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
        description: str | None = None,
        status: Literal["enabled", "disabled"] | None = None,
    ) -> Steps[WebhookView]:
        """What is left out stays as it is."""
        return self._send(
            calls.change_webhook(webhook_id, url=url, event_types=event_types, description=description, status=status)
        )

    @operation
    def rotate_secret(self, webhook_id: str, *, keep_previous_s: int | None = None) -> Steps[WebhookWithSecret]:
        """A new secret, shown this once; for so long (a day) the one before signs too."""
        return self._send(calls.rotate_secret(webhook_id, keep_previous_s=keep_previous_s))

    @operation
    def ping(self, webhook_id: str) -> Steps[DeliveryView]:
        """Send a ``webhook.ping``. Raises Conflict when the webhook is disabled."""
        return self._send(calls.ping_webhook(webhook_id))

    @operation
    def delete(self, webhook_id: str) -> Steps[None]:
        """Remove it with its deliveries, sent or not."""
        return self._send(calls.delete_webhook(webhook_id))

    @listing
    def deliveries(
        self, webhook_id: str, *, status: Literal["pending", "delivered", "failed"] | None = None
    ) -> Stream[DeliveryView]:
        """Messages to its URL, newest first."""
        return self._pages(calls.list_deliveries(webhook_id, status=status))

    @operation
    def delivery(self, webhook_id: str, delivery_id: str) -> Steps[DeliveryDetail]:
        """What was sent, and every attempt at it."""
        return self._send(calls.get_delivery(webhook_id, delivery_id))

    @operation
    def redeliver(self, webhook_id: str, delivery_id: str) -> Steps[DeliveryView]:
        """Send the same message again. Raises Conflict when the webhook is disabled."""
        return self._send(calls.redeliver(webhook_id, delivery_id))


class Webhooks(Blocking, WebhookOperations):
    pass


class AsyncWebhooks(Awaited, WebhookOperations):
    pass
