"""Reads of webhooks and their deliveries. Each raises Problem 404 for unknown ids and those of other tenants."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, func
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import find_owned, owned
from app.web import problems
from app.web.lookup import get_owned
from app.web.problems import Problem
from app.webhooks.schemas import DeliveryQuery
from core.ledger.tables import Webhook, WebhookAttempt, WebhookDelivery


async def get_webhook(session: AsyncSession, *, tenant: str, webhook_id: str, lock: bool = False) -> Webhook:
    """Raises Problem 404."""
    return await get_owned(session, Webhook, webhook_id, tenant=tenant, lock=lock)


async def count_webhooks(session: AsyncSession, *, tenant: str) -> int:
    return await session.scalar(owned(Webhook, tenant).with_only_columns(func.count())) or 0


def deliveries_of(tenant: str, webhook_id: str, query: DeliveryQuery) -> Select[WebhookDelivery]:
    statement = owned(WebhookDelivery, tenant).where(WebhookDelivery.webhook_id == webhook_id)
    return statement if query.status is None else statement.where(WebhookDelivery.status == query.status.value)


async def newest_deliveries(
    session: AsyncSession, *, tenant: str, webhook_ids: Sequence[str]
) -> dict[str, WebhookDelivery]:
    """The newest delivery by webhook id; webhooks without deliveries are left out. One index lookup per webhook."""
    newest = [
        owned(WebhookDelivery, tenant)
        .with_only_columns(WebhookDelivery.id)
        .where(WebhookDelivery.webhook_id == webhook_id)
        .order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc())
        .limit(1)
        .scalar_subquery()
        for webhook_id in webhook_ids
    ]
    rows = await session.scalars(owned(WebhookDelivery, tenant).where(WebhookDelivery.id.in_(newest)))
    return {row.webhook_id: row for row in rows}


async def get_delivery(
    session: AsyncSession, *, tenant: str, webhook_id: str, delivery_id: str, lock: bool = False
) -> WebhookDelivery:
    delivery = await find_owned(session, WebhookDelivery, delivery_id, tenant=tenant, lock=lock)
    if delivery is None or delivery.webhook_id != webhook_id:
        raise Problem(problems.NOT_FOUND, f"webhook {webhook_id!r} has no delivery {delivery_id!r}")
    return delivery


async def attempts_at(session: AsyncSession, *, tenant: str, delivery_id: str) -> Sequence[WebhookAttempt]:
    statement = owned(WebhookAttempt, tenant).where(WebhookAttempt.delivery_id == delivery_id)
    return (await session.scalars(statement.order_by(WebhookAttempt.number))).all()
