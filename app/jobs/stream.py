"""A job's events as server-sent events (HTML standard, section 9.2), from any point on, to the terminal one.

The stream reads what is committed and holds no connection while it waits, so a restarted API, database or client loses
nothing: the client comes back with ``Last-Event-ID`` and the rows are still there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from sqlalchemy.exc import SQLAlchemyError

from app.contract.events import TERMINAL
from app.database import OpenSession
from app.jobs.events import events_after
from app.jobs.schemas import EventView

BATCH = 200
POLL_SECONDS = 0.25
KEEPALIVE_SECONDS = 15.0
RECONNECT_MILLISECONDS = 1000
log = logging.getLogger(__name__)


async def stream_events(sessions: OpenSession, *, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Ends after a terminal event that is the job's last; a retried job has terminal events in the middle."""
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n".encode()
    spoke = time.monotonic()
    ended = False
    while True:
        try:
            async with sessions() as session:
                events = [
                    EventView.of(row) for row in await events_after(session, job_id=job_id, seq=after, limit=BATCH)
                ]
        except SQLAlchemyError as error:
            log.warning("stream of %s ends at event %d, the client will come back: %s", job_id, after, error)
            return
        for event in events:
            yield f"id: {event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()
            after, spoke, ended = event.seq, time.monotonic(), event.type in TERMINAL
        if ended and len(events) < BATCH:
            return
        if time.monotonic() - spoke > KEEPALIVE_SECONDS:
            yield b": still here\n\n"
            spoke = time.monotonic()
        if len(events) < BATCH:
            await asyncio.sleep(POLL_SECONDS)
