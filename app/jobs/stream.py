"""A job's events as server-sent events (HTML standard, section 9.2), from any point on, to the terminal one.

The stream reads committed rows and holds no connection while it waits. After a restart of the API, database or client
the client reconnects with ``Last-Event-ID`` and misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller, is_valid
from app.db.engine import OpenSession
from app.deps import Service
from app.jobs.events import events_after
from app.jobs.feed import Feed
from app.web import problems
from app.web.problems import Problem
from core.contract.events import AFTER_SUCCESS, TERMINAL
from core.ledger.tables import Job

EVENT_STREAM = "text/event-stream"
MAX_SEQ = 2**63 - 1
KEEPALIVE_SECONDS = 15.0
ASK_AGAIN_SECONDS = 15.0
"""Interval at which a follower's key is checked again: a stream may last for hours."""
RECONNECT_MILLISECONDS = 1000
log = logging.getLogger(__name__)


def event_id(header: str) -> int:
    """The number in a ``Last-Event-ID`` header. Raises Problem 400."""
    if header.isascii() and header.isdecimal() and len(header) <= 19 and int(header) <= MAX_SEQ:
        return int(header)
    raise Problem(problems.MALFORMED_REQUEST, "Last-Event-ID: the number of an event is needed")


async def respond(
    request: Request, caller: Caller, session: AsyncSession, deps: Service, feed: Feed, *, job: Job, after: int
) -> Response:
    """The stream of the caller's ``job``, or 204 when it has ended and the client has seen everything. Raises Problem
    400 for an event that has not happened."""
    if after > job.event_seq:
        raise Problem(problems.MALFORMED_REQUEST, f"event {after} does not exist: the last is {job.event_seq}")
    last = await events_after(session, job_id=job.id, seq=job.event_seq - 1, limit=1)
    if after == job.event_seq and last and last[0].type in TERMINAL | AFTER_SUCCESS:
        return Response(status_code=204)  # a browser's EventSource does not reconnect after it
    headers = {"Cache-Control": "no-store", "Vary": "Accept", "X-Accel-Buffering": "no"}
    if request.method == "HEAD":  # the stream itself would keep it waiting until the job's end
        return StreamingResponse(iter(()), media_type=EVENT_STREAM, headers=headers)
    events = stream_events(
        feed,
        deps.sessions_of(caller),
        tenant=caller.tenant,
        job_id=job.id,
        after=after,
        still_allowed=lambda: is_valid(deps.sessions, caller),
    )
    return StreamingResponse(events, media_type=EVENT_STREAM, headers=headers)


async def stream_events(
    feed: Feed,
    sessions: OpenSession,
    *,
    tenant: str,
    job_id: str,
    after: int,
    still_allowed: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bytes]:
    """Ends after a terminal event that is the job's last, and when the follower is not ``still_allowed`` any more. A
    retried job has terminal events in the middle."""
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n".encode()
    is_over = False
    checked_at = time.monotonic()
    with feed.following(job_id, tenant=tenant, sessions=sessions) as channel:
        outages = feed.broken
        while True:
            # Taken before the read, so that no event is missed between read and wait.
            change = channel.change
            try:
                if time.monotonic() - checked_at > ASK_AGAIN_SECONDS:
                    if not await still_allowed():
                        return
                    checked_at = time.monotonic()
                events = channel.since(after)
                if events is None:
                    events = await channel.from_the_ledger(after, feed.reading)
            except (SQLAlchemyError, psycopg.Error) as error:
                log.warning("stream of %s ends at event %d, the client will reconnect: %s", job_id, after, error)
                return
            if events:
                yield b"".join(event.data for event in events)
                after, is_over = events[-1].seq, events[-1].terminal
                continue
            if is_over or feed.broken > outages:
                return
            try:
                await asyncio.wait_for(change.wait(), KEEPALIVE_SECONDS)
            except TimeoutError:
                yield b": still here\n\n"
