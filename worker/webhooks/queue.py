"""Deliveries in the ledger: which are due, and what became of an attempt.

A delivery is written with its event, see ``core.ledger.outbox``. Here it is taken with a short lease, so that any
number of keepers may send at once and one that dies loses nothing; it may then be sent twice, with the same
``webhook-id``.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from worker.ledger.connection import Connection

SCHEDULE = (0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Seconds before each attempt, counted from the one before (Standard Webhooks, "Deliverability and reliability")."""
JITTER = 0.1
LEASE_SECONDS = 60.0
"""Longer than a whole attempt may take. A keeper that dies while sending leaves the delivery due again after this."""
GONE = 410
MOST_GIVEN_UP = 3
"""Deliveries in a row that used up the whole schedule, about three days each, before the webhook is disabled."""

TAKE = """
WITH ready AS MATERIALIZED (
    SELECT id, tenant, split_part(url, '/', 3) AS receiver FROM webhooks AS hook
    WHERE status = 'enabled' AND id <> ALL(%(busy)s) AND coalesce(busy_until <= clock_timestamp(), true)
        AND EXISTS (SELECT FROM webhook_deliveries
            WHERE webhook_id = hook.id AND status = 'pending' AND due_at <= clock_timestamp())
        AND NOT EXISTS (SELECT FROM webhooks AS other WHERE other.tenant = hook.tenant
            AND split_part(other.url, '/', 3) = split_part(hook.url, '/', 3)
            AND other.taken_at > clock_timestamp() - make_interval(secs => %(apart)s))
    FOR NO KEY UPDATE SKIP LOCKED
), waiting AS (
    SELECT next.id, ready.id AS webhook_id, next.due_at, row_number() OVER (PARTITION BY ready.tenant
            ORDER BY next.due_at) + (SELECT count(*) FROM unnest(%(tenants)s::text[]) AS served
            WHERE served = ready.tenant) AS turn,
        row_number() OVER (PARTITION BY ready.tenant, ready.receiver ORDER BY next.due_at) AS of_receiver
    FROM ready CROSS JOIN LATERAL (
        SELECT id, due_at FROM webhook_deliveries
        WHERE webhook_id = ready.id AND status = 'pending' AND due_at <= clock_timestamp()
        ORDER BY due_at, created_at LIMIT 1 FOR UPDATE SKIP LOCKED
    ) AS next
), chosen AS (
    SELECT id, webhook_id FROM waiting WHERE of_receiver = 1 OR %(apart)s = 0 ORDER BY turn, due_at LIMIT %(limit)s
), taken AS (
    UPDATE webhooks SET taken_at = clock_timestamp(), busy_until = clock_timestamp() + make_interval(secs => %(lease)s)
    FROM chosen WHERE webhooks.id = chosen.webhook_id
    RETURNING chosen.id AS delivery_id, webhooks.url, webhooks.format AS form, webhooks.secret,
        CASE WHEN webhooks.previous_until > clock_timestamp() THEN webhooks.previous_secret END AS previous_secret
)
UPDATE webhook_deliveries AS delivery
SET attempts = attempts + 1, due_at = clock_timestamp() + make_interval(secs => %(lease)s)
FROM taken WHERE delivery.id = taken.delivery_id
RETURNING delivery.id, delivery.webhook_id, delivery.tenant, delivery.attempts, delivery.step, delivery.message_id,
    delivery.payload, taken.url, taken.form, taken.secret, taken.previous_secret
"""
"""The webhook's row is locked and marked: another keeper passes it over until the answer is recorded."""


@dataclass(frozen=True)
class Due:
    """A delivery that is ours to send now. ``attempts`` is its fencing token; the secrets are still sealed."""

    id: str
    webhook_id: str
    tenant: str
    attempts: int
    step: int
    message_id: str
    payload: dict[str, Any]
    url: str
    form: str
    secret: str
    previous_secret: str | None


@dataclass(frozen=True)
class Answer:
    """What became of an attempt: the status of an answer, or why there was none."""

    status: int | None
    error: str | None
    milliseconds: int

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def take_due(connection: Connection, *, busy: Collection[Due], limit: int, rate: float = 0.0) -> list[Due]:
    """Up to ``limit`` deliveries that are due, the oldest of each webhook that is not ``busy`` here or at another
    keeper. ``rate``: the most per second to the receivers of one tenant at one host; 0: no limit.

    Tenants take turns, those first of whom least is on its way: the slow endpoints of one delay no other's messages.
    """
    values = {
        "lease": LEASE_SECONDS,
        "busy": [due.webhook_id for due in busy],
        "tenants": [due.tenant for due in busy],
        "limit": limit,
        "apart": 1 / rate if rate else 0.0,
    }
    rows = connection.execute(TAKE, values).fetchall()
    return [Due(**row) for row in rows]


def record(connection: Connection, due: Due, answer: Answer) -> None:
    """Log the attempt, and decide what is next: done, another attempt, or the end of the delivery or the webhook."""
    with connection.transaction():
        # First the webhook, then the delivery, as the owner's requests lock them.
        connection.execute(
            # Unless the delivery was taken again meanwhile: its webhook is then busy with that.
            "UPDATE webhooks SET busy_until = CASE WHEN EXISTS (SELECT FROM webhook_deliveries WHERE id = %s"
            " AND attempts = %s) THEN NULL ELSE busy_until END WHERE id = %s",
            (due.id, due.attempts, due.webhook_id),
        )
        connection.execute(
            "INSERT INTO webhook_attempts (delivery_id, number, tenant, status_code, error, milliseconds)"
            # Locked: the sweep may be forgetting a delivery that another keeper ended.
            " SELECT id, %s, tenant, %s, %s, %s FROM webhook_deliveries WHERE id = %s FOR KEY SHARE"
            " ON CONFLICT DO NOTHING",
            (due.attempts, answer.status, answer.error, answer.milliseconds, due.id),
        )
        if answer.delivered:
            if _end(connection, due, "delivered"):
                connection.execute("UPDATE webhooks SET given_up_in_a_row = 0 WHERE id = %s", (due.webhook_id,))
        elif answer.status == GONE:
            if _end(connection, due, "failed"):
                _disable(connection, due, "the endpoint answered 410 Gone")
        elif due.step + 1 < len(SCHEDULE):
            delay = SCHEDULE[due.step + 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 -- spreads load only
            connection.execute(
                "UPDATE webhook_deliveries SET step = step + 1, due_at = clock_timestamp() + make_interval(secs => %s)"
                " WHERE id = %s AND attempts = %s AND step = %s AND status = 'pending'",
                (delay, due.id, due.attempts, due.step),
            )
        elif _end(connection, due, "failed"):
            row = connection.execute(
                "UPDATE webhooks SET given_up_in_a_row = given_up_in_a_row + 1 WHERE id = %s"
                " RETURNING given_up_in_a_row",
                (due.webhook_id,),
            ).fetchone()
            if row is not None and row["given_up_in_a_row"] >= MOST_GIVEN_UP:
                _disable(connection, due, f"{MOST_GIVEN_UP} deliveries in a row failed on every attempt")


def _end(connection: Connection, due: Due, status: str) -> bool:
    """False when the delivery was asked for again, or was taken by another keeper, in the meantime."""
    update = connection.execute(
        "UPDATE webhook_deliveries SET status = %s, due_at = NULL, finished_at = clock_timestamp()"
        # Its owner asks for it again by beginning the schedule anew.
        " WHERE id = %s AND attempts = %s AND step = %s AND status = 'pending'",
        (status, due.id, due.attempts, due.step),
    )
    return update.rowcount == 1


def _disable(connection: Connection, due: Due, reason: str) -> None:
    """Nothing more is sent; what waits has failed, and can be delivered again once the webhook is enabled."""
    connection.execute(
        "UPDATE webhooks SET status = 'disabled', disabled_reason = %s, updated_at = clock_timestamp() WHERE id = %s",
        (reason, due.webhook_id),
    )
    connection.execute(
        "UPDATE webhook_deliveries SET status = 'failed', due_at = NULL, finished_at = clock_timestamp()"
        " WHERE webhook_id = %s AND status = 'pending'",
        (due.webhook_id,),
    )
