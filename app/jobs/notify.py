"""Ringing for jobs that were just made: behind the response, one thread at most, and never a reason to fail.

What is made while a ring is under way is rung for together by the next one.
"""

from __future__ import annotations

import asyncio
import logging

from fastapi import BackgroundTasks

from core.crash_points import reach
from core.wakeup import Bell

CLOSE_SECONDS = 2.0
log = logging.getLogger(__name__)


class Ringer:
    """Of one process. ``bell``: None where the API has no broker; the keeper rings then."""

    def __init__(self, bell: Bell | None) -> None:
        self._bell = bell
        self._waiting: list[str] = []
        self._ringing: asyncio.Task[None] | None = None

    async def ring(self, job_id: str) -> None:
        """Returns at once. The job is committed and answered."""
        reach("bell.before")
        if self._bell is None:
            return
        self._waiting.append(job_id)
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.create_task(self._ring_for_all(self._bell))

    async def _ring_for_all(self, bell: Bell) -> None:
        while self._waiting:
            job_ids, self._waiting = self._waiting, []
            try:
                # In a thread: a Redis that hangs must not stop the API, and may hold one of its threads.
                await asyncio.to_thread(bell.ring, *job_ids)
            except Exception as error:  # noqa: BLE001 -- whatever a broker can raise; the jobs are safe
                log.warning(
                    "bell for %s not rung, the keeper will: %s", ", ".join(job_ids[:3]), error or type(error).__name__
                )

    async def close(self) -> None:
        if self._ringing is not None:
            await asyncio.wait([self._ringing], timeout=CLOSE_SECONDS)


class Doorbell:
    """A request's: rings once the response is on its way, hence after the commit."""

    def __init__(self, ringer: Ringer, background: BackgroundTasks) -> None:
        self._ringer = ringer
        self._background = background

    def ring_later(self, job_id: str) -> None:
        self._background.add_task(self._ringer.ring, job_id)
