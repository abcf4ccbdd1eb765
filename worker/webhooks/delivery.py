"""Delivers webhooks: takes what is due, sends it beside others, and records what came of it. Runs in the keeper.

One delivery of a webhook is on its way at a time, so that a slow endpoint delays only itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import psycopg

from core.secret import BadSeal, Seal, service_secret
from core.settings import Settings
from worker.ledger.connection import Connection, connect
from worker.webhooks import queue as webhooks
from worker.webhooks.formats import body_of
from worker.webhooks.queue import Answer, Due
from worker.webhooks.sender import NotDelivered, Policy, post, signed_headers

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 32
IDLE_SECONDS = 1.0


def deliver(settings: Settings, stop: threading.Event) -> None:
    """Deliver until ``stop`` is set. Waits for a database that is away."""
    while not stop.is_set():
        try:
            seal = Seal(service_secret(settings))
            with connect(settings.database_url or "") as connection:
                asyncio.run(_deliver_connected(connection, settings, seal, stop))
        except psycopg.Error as error:
            logger.warning("the ledger cannot be reached, webhooks wait: %s", error)
            stop.wait(settings.keeper_interval)
        except Exception:  # a thread that is gone would send nothing any more, and nobody would notice
            logger.exception("webhooks wait")
            stop.wait(settings.keeper_interval)


async def attempt(due: Due, *, seal: Seal, policy: Policy) -> Answer:
    """Send it once. An error becomes the answer."""
    began = time.monotonic()
    status: int | None = None
    error: str | None = None
    try:
        body = body_of(due.payload, form=due.form)
        ciphertexts = [due.secret] + ([due.previous_secret] if due.previous_secret is not None else [])
        secrets = [seal.open(each, row=due.webhook_id) for each in ciphertexts]
        headers = signed_headers(secrets, message_id=due.message_id, timestamp=int(time.time()), body=body)
        status = await post(due.url, headers=headers, body=body, policy=policy)
        if 300 <= status < 400:
            error = "redirects are not followed: change the webhook's URL"
    except (NotDelivered, BadSeal) as failure:
        error = str(failure)
    except Exception:  # whatever it is, the delivery must be tried again and others go on
        logger.exception("%s: sending failed", due.id)
        error = "a fault of the service"
    return Answer(status, error, int((time.monotonic() - began) * 1000))


async def _deliver_connected(connection: Connection, settings: Settings, seal: Seal, stop: threading.Event) -> None:
    policy = Policy(
        allow_http=settings.webhook_allow_http,
        allow_private=settings.webhook_allow_private,
        seconds=settings.webhook_timeout,
    )
    tasks: dict[asyncio.Task[Answer], Due] = {}
    rate, idle = settings.webhook_rate, IDLE_SECONDS
    try:
        while not stop.is_set():
            busy = list(tasks.values())
            room = MOST_AT_ONCE - len(tasks)
            # The connection is used by one thread at a time; the loop goes on sending meanwhile.
            for due in (
                await asyncio.to_thread(webhooks.take_due, connection, busy=busy, limit=room, rate=rate) if room else []
            ):
                tasks[asyncio.create_task(attempt(due, seal=seal, policy=policy))] = due
            if not tasks:
                # After a message there may be more that only wait for the rate.
                idle = min(IDLE_SECONDS, idle * 2)
                await asyncio.sleep(idle)
                continue
            idle = 1 / rate / 2 if rate else IDLE_SECONDS
            done, _ = await asyncio.wait(tasks, timeout=IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                due, answer = tasks.pop(task), task.result()
                await asyncio.to_thread(webhooks.record, connection, due, answer)
                logger.info("%s to %s: %s", due.message_id, due.webhook_id, answer.error or answer.status)
    finally:
        for task in tasks:  # what is cut off here is due again when its lease ends
            task.cancel()
