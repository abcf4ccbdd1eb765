"""Webhooks, and every delivery to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.ledger.tables.base import Base, now


class Webhook(Base):
    """A URL that wants to be told of a tenant's jobs."""

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint("status IN ('enabled', 'disabled')", name="status"),
        Index("ix_webhooks_page", "tenant", text("created_at DESC"), text("id DESC")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    format: Mapped[str] = mapped_column(String(16), server_default="standard")
    """A ``core.contract.webhook_format.WebhookFormat``."""
    description: Mapped[str] = mapped_column(server_default="")
    status: Mapped[str] = mapped_column(String(16), server_default="enabled")
    disabled_reason: Mapped[str | None]
    secret: Mapped[str]
    """Sealed for this row: see ``core.secret``."""
    previous_secret: Mapped[str | None]
    previous_until: Mapped[datetime | None]
    """Until when the secret before the last rotation signs too."""
    given_up_in_a_row: Mapped[int] = mapped_column(Integer, server_default="0")
    """Deliveries that failed on every attempt since one last got through."""
    busy_until: Mapped[datetime | None]
    """A keeper is sending one of its messages, or died while it did."""
    taken_at: Mapped[datetime | None]
    """When a message was last taken to be sent."""
    created_at: Mapped[datetime] = now()
    updated_at: Mapped[datetime] = now()


class WebhookDelivery(Base):
    """One message to one webhook, written in the transaction of the event that it tells of."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
        CheckConstraint("(status = 'pending') = (due_at IS NOT NULL)", name="due"),
        UniqueConstraint("webhook_id", "message_id", name="uq_webhook_deliveries_message"),
        Index("ix_webhook_deliveries_due", "webhook_id", "due_at", postgresql_where=text("status = 'pending'")),
        Index(
            "ix_webhook_deliveries_finished", "tenant", "finished_at", postgresql_where=text("finished_at IS NOT NULL")
        ),
        Index("ix_webhook_deliveries_page", "webhook_id", text("created_at DESC"), text("id DESC")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    tenant: Mapped[str]
    message_id: Mapped[str]
    """``evt_…``, made of job and ``seq``: the same at every webhook and on every attempt."""
    event_type: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(16), server_default="pending")
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    """Counts how often it was taken to be sent; the fencing token of the sender."""
    step: Mapped[int] = mapped_column(Integer, server_default="0")
    """Place in the schedule of attempts."""
    due_at: Mapped[datetime | None] = mapped_column(server_default=func.clock_timestamp())
    created_at: Mapped[datetime] = now()
    finished_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """What came of sending a message once."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    tenant: Mapped[str]
    at: Mapped[datetime] = now()
    status_code: Mapped[int | None] = mapped_column(Integer)
    error: Mapped[str | None]
    milliseconds: Mapped[int] = mapped_column(Integer)
