"""Webhooks and their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from quant_experts.client.views.base import View


class WebhookView(View):
    id: str
    url: str
    event_types: list[str]
    format: Literal["standard", "slack", "teams"] = "standard"
    description: str
    status: Literal["enabled", "disabled"]
    disabled_reason: str | None
    previous_secret_until: datetime | None
    created_at: datetime
    updated_at: datetime


class WebhookWithSecret(WebhookView):
    secret: str
    """Shown this once."""


class DeliveryView(View):
    id: str
    webhook_id: str
    message_id: str
    event_type: str
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None


class DeliveryAttempt(View):
    number: int
    at: datetime
    status_code: int | None
    error: str | None
    milliseconds: int


class DeliveryDetail(DeliveryView):
    payload: dict[str, Any]
    log: list[DeliveryAttempt]
