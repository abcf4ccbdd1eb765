"""What clients send and see of webhooks."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, field_validator

from app.web.paging import PageQuery
from app.web.schemas import OfRow, Strict
from core.contract import patterns
from core.contract.webhook_format import WebhookFormat
from core.contract.webhook_url import MOST_CHARACTERS
from core.ledger.outbox import ANNOUNCED
from core.ledger.tables import Webhook, WebhookDelivery
from quant_experts.spec.choices import WHOLE

Url = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS)]
Description = Annotated[str, StringConstraints(max_length=200, pattern=patterns.LINE_OR_NOTHING)]
Event = Literal["job.started", "job.succeeded", "job.failed", "job.cancelled", "job.pushed", "job.push_failed"]
assert set(Event.__args__) == set(ANNOUNCED)  # type: ignore[attr-defined]
DAY = 24 * 3600


class WebhookStatus(StrEnum):
    ENABLED = "enabled"
    DISABLED = "disabled"


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


def _sorted_set(events: list[Event] | None) -> list[Event] | None:
    return events if events is None else sorted(set(events))


Events = Annotated[list[Event], Field(min_length=1, max_length=len(ANNOUNCED))]


class NewWebhook(Strict):
    url: Url = Field(description="https://…, reachable on the internet.", examples=["https://ci.example.com/hooks/qe"])
    event_types: Events = Field(default=["job.cancelled", "job.failed", "job.succeeded"])
    format: WebhookFormat = Field(
        default=WebhookFormat.STANDARD,
        description="`slack` and `teams` send a line of text as these chats want it; `standard` is signed JSON.",
    )
    description: Description = ""

    _each_once = field_validator("event_types")(_sorted_set)


class WebhookChanges(Strict):
    """What is left out stays as it is."""

    url: Url | None = None
    event_types: Events | None = None
    format: WebhookFormat | None = None
    description: Description | None = None
    status: WebhookStatus | None = Field(default=None, description="`enabled` also clears the count of failures.")

    _each_once = field_validator("event_types")(_sorted_set)


class Rotation(Strict):
    keep_previous_s: Annotated[int, Field(strict=True, ge=0, le=7 * DAY), WHOLE] = Field(
        default=DAY, description="For so long both secrets sign."
    )


class WebhookView(BaseModel):
    id: str = Field(examples=["wh_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["webhook"] = "webhook"
    url: str
    event_types: list[Event]
    format: WebhookFormat
    description: str
    status: WebhookStatus
    disabled_reason: str | None
    previous_secret_until: datetime | None = Field(description="Until then messages carry two signatures.")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, webhook: Webhook) -> WebhookView:
        return cls(
            id=webhook.id,
            url=webhook.url,
            event_types=webhook.event_types,
            format=WebhookFormat(webhook.format),
            description=webhook.description,
            status=WebhookStatus(webhook.status),
            disabled_reason=webhook.disabled_reason,
            previous_secret_until=webhook.previous_until,
            created_at=webhook.created_at,
            updated_at=webhook.updated_at,
        )


class WebhookWithSecret(WebhookView):
    secret: str = Field(description="Signs every message. It is shown this once.", examples=["whsec_…"])


class DeliveryQuery(PageQuery):
    status: DeliveryStatus | None = None


class DeliveryView(BaseModel):
    id: str = Field(examples=["whd_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["webhook_delivery"] = "webhook_delivery"
    webhook_id: str
    message_id: str = Field(description="`webhook-id` of the message; the same on every attempt.")
    event_type: str
    status: DeliveryStatus
    attempts: int
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> DeliveryView:
        return cls(
            id=delivery.id,
            webhook_id=delivery.webhook_id,
            message_id=delivery.message_id,
            event_type=delivery.event_type,
            status=DeliveryStatus(delivery.status),
            attempts=delivery.attempts,
            next_attempt_at=delivery.due_at,
            created_at=delivery.created_at,
            finished_at=delivery.finished_at,
        )


class DeliveryAttempt(OfRow):
    number: int
    at: datetime = Field(description="When it ended.")
    status_code: int | None = Field(description="Status of the endpoint's answer; null when none came.")
    error: str | None
    milliseconds: int


class DeliveryDetail(DeliveryView):
    payload: dict[str, Any]
    log: list[DeliveryAttempt]
