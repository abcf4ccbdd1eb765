"""A job's events as server-sent events (HTML standard, section 9.2), from any point on, to the terminal one.

The stream reads what is committed and holds no connection while it waits, so a restarted API, database or client loses
nothing: the client comes back with ``Last-Event-ID`` and the rows are still there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from app.db.engine import OpenSession
from app.jobs.feed import Feed

KEEPALIVE_SECONDS = 15.0
ASK_AGAIN_SECONDS = 15.0
"""After so long a follower's key is looked at again: a stream may outlive it by hours."""
RECONNECT_MILLISECONDS = 1000
log = logging.getLogger(__name__)


async def stream_events(
    feed: Feed,
    sessions: OpenSession,
    *,
    tenant: str,
    job_id: str,
    after: int,
    still_allowed: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bytes]:
    """Ends after a terminal event that is the job's last (a retried job has terminal events in the middle), and when
    the follower is not ``still_allowed``."""
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n".encode()
    ended = False
    asked = time.monotonic()
    with feed.following(job_id, tenant=tenant, sessions=sessions) as channel:
        broken = feed.broken
        while True:
            # Before the look, so that nothing falls between the look and the wait.
            changed = channel.changed
            try:
                if time.monotonic() - asked > ASK_AGAIN_SECONDS:
                    if not await still_allowed():
                        return
                    asked = time.monotonic()
                events = channel.since(after)
                if events is None:
                    events = await channel.from_the_ledger(after, feed.reading)
            except (SQLAlchemyError, psycopg.Error) as error:
                log.warning("stream of %s ends at event %d, the client will come back: %s", job_id, after, error)
                return
            if events:
                yield b"".join(event.data for event in events)
                after, ended = events[-1].seq, events[-1].terminal
                continue
            if ended or feed.broken > broken:
                return
            try:
                await asyncio.wait_for(changed.wait(), KEEPALIVE_SECONDS)
            except TimeoutError:
                yield b": still here\n\n"
