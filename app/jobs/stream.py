"""A job's events as server-sent events (HTML standard, section 9.2), from any point on, to the terminal one.

The stream reads what is committed and holds no connection while it waits, so a restarted API, database or client loses
nothing: the client comes back with ``Last-Event-ID`` and the rows are still there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from sqlalchemy.exc import SQLAlchemyError

from app.database import OpenSession
from app.jobs.feed import Feed

KEEPALIVE_SECONDS = 15.0
RECONNECT_MILLISECONDS = 1000
log = logging.getLogger(__name__)


async def stream_events(
    feed: Feed, sessions: OpenSession, *, tenant: str, job_id: str, after: int
) -> AsyncIterator[bytes]:
    """Ends after a terminal event that is the job's last; a retried job has terminal events in the middle."""
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n".encode()
    ended = False
    with feed.following(job_id, tenant=tenant, sessions=sessions) as channel:
        broken = feed.broken
        while True:
            # Before the look, so that nothing falls between the look and the wait.
            changed = channel.changed
            events = channel.since(after)
            if events is None:
                try:
                    events = await channel.from_the_ledger(after, feed.reading)
                except SQLAlchemyError as error:
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
