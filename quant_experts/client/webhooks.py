"""Webhooks: signed messages about jobs, and the log of their deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from quant_experts.client.effects import Operation, Stream
from quant_experts.client.operation import Awaited, Blocking, Operations, listing, operation
from quant_experts.client.requests import webhooks as requests
from quant_experts.client.views.webhooks import DeliveryDetail, DeliveryView, WebhookView, WebhookWithSecret

Format = Literal["standard", "slack", "teams"]


class WebhookOperations(Operations):
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @operation
    def create(
        self,
        url: str,
        *,
        event_types: Sequence[str] | None = None,
        format: Format | None = None,  # noqa: A002 -- the name of the field
        description: str | None = None,
    ) -> Operation[WebhookWithSecret]:
        """The answer is the only place where the secret ever stands. ``format``: ``slack`` and ``teams`` send a line of
        text as these chats want it."""
        return self._send(
            requests.create_webhook(url=url, event_types=event_types, format=format, description=description)
        )

    @operation
    def get(self, webhook_id: str) -> Operation[WebhookView]:
        return self._send(requests.get_webhook(webhook_id))

    @listing
    def list(self) -> Stream[WebhookView]:
        """Webhooks, newest first."""
        return self._pages(requests.list_webhooks())

    @operation
    def change(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
        format: Format | None = None,  # noqa: A002 -- the name of the field
        description: str | None = None,
        status: Literal["enabled", "disabled"] | None = None,
    ) -> Operation[WebhookView]:
        """What is left out stays as it is."""
        return self._send(
            requests.change_webhook(
                webhook_id, url=url, event_types=event_types, format=format, description=description, status=status
            )
        )

    @operation
    def rotate_secret(self, webhook_id: str, *, keep_previous_s: int | None = None) -> Operation[WebhookWithSecret]:
        """A new secret, shown this once; for so long (a day) the one before signs too."""
        return self._send(requests.rotate_secret(webhook_id, keep_previous_s=keep_previous_s))

    @operation
    def ping(self, webhook_id: str) -> Operation[DeliveryView]:
        """Send a ``webhook.ping``. Raises Conflict when the webhook is disabled."""
        return self._send(requests.ping_webhook(webhook_id))

    @operation
    def delete(self, webhook_id: str) -> Operation[None]:
        """Remove it with its deliveries, sent or not."""
        return self._send(requests.delete_webhook(webhook_id))

    @listing
    def deliveries(
        self, webhook_id: str, *, status: Literal["pending", "delivered", "failed"] | None = None
    ) -> Stream[DeliveryView]:
        """Messages to its URL, newest first."""
        return self._pages(requests.list_deliveries(webhook_id, status=status))

    @operation
    def delivery(self, webhook_id: str, delivery_id: str) -> Operation[DeliveryDetail]:
        """What was sent, and every attempt at it."""
        return self._send(requests.get_delivery(webhook_id, delivery_id))

    @operation
    def redeliver(self, webhook_id: str, delivery_id: str) -> Operation[DeliveryView]:
        """Send the same message again. Raises Conflict when the webhook is disabled."""
        return self._send(requests.redeliver(webhook_id, delivery_id))


class Webhooks(Blocking, WebhookOperations):
    pass


class AsyncWebhooks(Awaited, WebhookOperations):
    pass
