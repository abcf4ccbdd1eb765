"""New events of followed jobs, read once per process for all followers.

A query per stream would be four queries a second for each follower. Here one task per process polls the newest event
number of the followed jobs, per tenant. It reads new events once per job and encodes them once; followers take them
from memory. A follower that is further behind than the tail reads from the ledger. The feed stores nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.exc import SQLAlchemyError

from app.db.engine import OpenSession
from app.db.tenancy import owned
from app.jobs.events import events_after
from app.jobs.schemas import EventView
from core.contract.events import AFTER_SUCCESS, TERMINAL
from core.ledger.tables import Job, JobEvent

POLL_SECONDS = 0.25
BATCH = 200
READS = 4
"""Concurrent reads for followers that are behind. Fewer than the pool has connections."""
TAIL = 500
"""Events per job in memory; some hundred bytes each."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EventFrame:
    """An event as its bytes on a stream."""

    seq: int
    terminal: bool
    data: bytes


def frame_of(row: JobEvent) -> EventFrame:
    event = EventView.of(row)
    data = f"id: {event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()
    return EventFrame(event.seq, event.type in TERMINAL | AFTER_SUCCESS, data)


@dataclass
class Channel:
    """A job with at least one follower."""

    job_id: str
    tenant: str
    sessions: OpenSession
    followers: int = 0
    last_seq: int | None = None
    """Number of the last event that the feed has read; None before its first poll."""
    tail: deque[EventFrame] = field(default_factory=lambda: deque(maxlen=TAIL))
    """The last events, without gaps, up to ``last_seq``."""
    change: asyncio.Event = field(default_factory=asyncio.Event)
    reads: dict[int, asyncio.Task[Sequence[EventFrame]]] = field(default_factory=dict)
    """Running reads of the ledger, by the event number they start after."""

    def since(self, seq: int) -> Sequence[EventFrame] | None:
        """The events after ``seq``; None when they are not in memory."""
        if self.last_seq is None or seq < self.last_seq - len(self.tail):
            return None
        return [event for event in self.tail if event.seq > seq] if seq < self.last_seq else []

    async def from_the_ledger(self, seq: int, turn: asyncio.Semaphore) -> Sequence[EventFrame]:
        """A batch of the events after ``seq``. Concurrent calls with the same ``seq`` share one read.

        After an outage a thousand followers reconnect together, and a query for each would take all connections of
        the pool. Raises SQLAlchemyError.
        """
        task = self.reads.get(seq)
        if task is None:
            task = self.reads[seq] = asyncio.create_task(self._read(seq, turn))
            task.add_done_callback(lambda _: self.reads.pop(seq, None))
        return await asyncio.shield(task)

    async def _read(self, seq: int, turn: asyncio.Semaphore) -> Sequence[EventFrame]:
        async with turn, self.sessions() as session:
            return [frame_of(row) for row in await events_after(session, job_id=self.job_id, seq=seq, limit=BATCH)]

    def announce(self) -> None:
        """Wake every waiting follower."""
        self.change.set()
        self.change = asyncio.Event()


class Feed:
    """The channels of one process, and the task that fills them."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        self._task: asyncio.Task[None] | None = None
        self.reading = asyncio.Semaphore(READS)
        self.broken = 0
        """Count of failed polls."""

    @property
    def followers(self) -> int:
        return sum(channel.followers for channel in self._channels.values())

    @contextmanager
    def following(self, job_id: str, *, tenant: str, sessions: OpenSession) -> Iterator[Channel]:
        """The job's channel, which lives as long as it has followers. The caller has checked the tenant of the job."""
        channel = self._channels.setdefault(job_id, Channel(job_id, tenant, sessions))
        channel.followers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._fill(), name="feed")
        try:
            yield channel
        finally:
            channel.followers -= 1
            if channel.followers == 0:
                self._channels.pop(job_id, None)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _fill(self) -> None:
        while self._channels:
            try:
                await self._look()
            except Exception as error:  # any: without this task all followers would wait for ever
                unforeseen = not isinstance(error, (SQLAlchemyError, OSError))
                log.warning(
                    "the feed of %d jobs cannot read the ledger: %s", len(self._channels), error, exc_info=unforeseen
                )
                self.broken += 1
                for channel in self._channels.values():
                    channel.announce()
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        tenants: dict[str, list[Channel]] = defaultdict(list)
        for channel in self._channels.values():
            tenants[channel.tenant].append(channel)
        for tenant, channels in tenants.items():
            by_id = {channel.job_id: channel for channel in channels}
            async with channels[0].sessions() as session:
                statement = owned(Job, tenant).with_only_columns(Job.id, Job.event_seq).where(Job.id.in_(by_id))
                newest = {row.id: row.event_seq for row in await session.execute(statement)}
                for job_id, seq in newest.items():
                    channel = by_id[job_id]
                    if channel.last_seq is None:
                        channel.last_seq = seq
                        channel.announce()
                    elif seq > channel.last_seq:
                        rows = await events_after(session, job_id=job_id, seq=channel.last_seq, limit=BATCH)
                        channel.tail.extend(frame_of(row) for row in rows)
                        channel.last_seq = rows[-1].seq if rows else channel.last_seq
                        channel.announce()


async def feed_of(request: Request) -> Feed:  # not def: FastAPI would send it to a thread and back
    feed = request.app.state.feed
    assert isinstance(feed, Feed)
    return feed


FeedDep = Annotated[Feed, Depends(feed_of)]
