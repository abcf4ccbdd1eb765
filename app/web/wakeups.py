"""Wake-ups for workers after a job was queued. They go out behind the response, and losing one is harmless.

One thread sends at a time. Jobs that are queued while it sends share the next message. The keeper wakes workers for
jobs whose wake-up was lost.
"""

from __future__ import annotations

import asyncio
import logging

from fastapi import BackgroundTasks

from core.crash_points import reach
from core.wakeup import Notifier

CLOSE_SECONDS = 2.0
log = logging.getLogger(__name__)


class WorkerNotifier:
    """One for each process. ``notifier``: None where the API has no broker; the keeper wakes the workers then."""

    def __init__(self, notifier: Notifier | None) -> None:
        self._notifier = notifier
        self._queue: list[str] = []
        self._task: asyncio.Task[None] | None = None

    async def notify(self, job_id: str) -> None:
        """Returns at once. The job is committed and answered."""
        reach("notify.before")
        if self._notifier is None:
            return
        self._queue.append(job_id)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_all(self._notifier))

    async def _send_all(self, notifier: Notifier) -> None:
        while self._queue:
            job_ids, self._queue = self._queue, []
            try:
                # In a thread: a Redis that hangs must not stop the API, and may hold one of its threads.
                await asyncio.to_thread(notifier.notify, *job_ids)
            except Exception as error:  # noqa: BLE001 -- whatever a broker can raise; the jobs are safe
                log.warning(
                    "workers not notified of %s, the keeper will: %s",
                    ", ".join(job_ids[:3]),
                    error or type(error).__name__,
                )

    async def close(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)


class RequestNotifier:
    """The notifier of one request. It sends once the response is on its way, hence after the commit."""

    def __init__(self, notifier: WorkerNotifier, background: BackgroundTasks) -> None:
        self._notifier = notifier
        self._background = background

    def notify_later(self, job_id: str) -> None:
        self._background.add_task(self._notifier.notify, job_id)
