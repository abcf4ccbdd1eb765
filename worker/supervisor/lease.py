"""The lease of a claimed job: heartbeats in a thread of their own, so that no upload or slow block delays them.

A second thread watches the first. When no beat has succeeded for ``self_kill`` seconds, counted from the *start* of the
last good one, the child is killed before the keeper can give the job to another worker: self-kill < lease < lease +
grace.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from enum import Enum

import psycopg

from core.ledger.states import JobStatus
from core.settings import Settings
from worker import metrics, process
from worker.ledger import attempts as ledger
from worker.ledger.connection import CONNECT_SECONDS, STATEMENT_SECONDS, Connection, connect

logger = logging.getLogger(__name__)

PEEK_SECONDS = 1.0
"""How often to look for a cancel request between two beats."""


CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LeaseState(Enum):
    HELD = "held"
    CANCELLING = "cancelling"
    """Someone asked to stop the job; it is still ours to end."""
    TIMED_OUT = "timed out"
    """The job took longer than its owner allowed; it is still ours to end."""
    LOST = "lost"
    """Another worker has the job, or may have it by now. This one must do nothing more for it."""


class Lost(Exception):
    """The lease is gone; the child process has been killed."""


class CancelRequested(Exception):
    """The job is to be cancelled; the child process has been killed."""


class TimedOut(Exception):
    """The job's time is used up; the child process has been killed."""


class Lease:
    """The state of a lease, and the child process that is killed when it is lost."""

    def __init__(self, settings: Settings, ref: ledger.AttemptRef, *, seconds_left: float) -> None:
        self._settings = settings
        self._ref = ref
        self._lock = threading.Lock()
        self._state = LeaseState.HELD
        self._ended = threading.Event()
        """Set as soon as the job is lost, to be cancelled, or over: whoever waits, stops waiting."""
        self._over = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._last_good = monotonic()
        self._deadline = monotonic() + seconds_left

    @property
    def state(self) -> LeaseState:
        return self._state

    def check(self) -> None:
        """Raises Lost, CancelRequested or TimedOut."""
        if self._state is LeaseState.LOST:
            raise Lost(self._ref.job_id)
        if self._state is LeaseState.CANCELLING:
            raise CancelRequested(self._ref.job_id)
        if self._state is LeaseState.TIMED_OUT:
            raise TimedOut(self._ref.job_id)

    def wait(self, seconds: float) -> None:
        """Sleep, but wake up when the lease is disturbed."""
        (self._ended if self._state is LeaseState.HELD else self._over).wait(seconds)

    @contextlib.contextmanager
    def guarding(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """While inside, ``child`` and all it started are killed when the job is lost or to be cancelled."""
        with self._lock:
            self._child = child
            was_lost = self._state is not LeaseState.HELD
        if was_lost:
            process.kill_group(child)
        try:
            yield
        finally:
            with self._lock:
                self._child = None

    def look_again(self, connection: Connection) -> None:
        """Read the status now, after a refused write: the job is lost or to be cancelled."""
        try:
            status = ledger.read_status(connection, self._ref)
        except ledger.NotHeld:
            self._refused()
        else:
            self._take_status(status)

    def send_heartbeats(self) -> None:
        """Extend the lease until it is over. The body of the first thread."""
        connection: Connection | None = None
        next_beat = 0.0
        while not self._over.is_set() and self._state is not LeaseState.LOST:
            began = monotonic()
            try:
                connection = connection or connect(self._settings.database_url or "")
                if began < next_beat:
                    self.look_again(connection)
                else:
                    self._beat(connection, began)
                    next_beat = began + self._settings.beat
            except psycopg.Error as error:
                metrics.BEATS_FAILED.inc()
                logger.warning("%s: heartbeat failed, trying again: %s", self._ref.job_id, error)
                if connection is not None:
                    connection.close()
                connection, next_beat = None, 0.0
            self._over.wait(min(PEEK_SECONDS, self._settings.beat / 2))
        if connection is not None:
            connection.close()

    def watch(self) -> None:
        """Give the job up when no heartbeat succeeds; end it when it takes too long. The body of the second thread."""
        while self._state is not LeaseState.LOST:
            now = monotonic()
            if now >= self._last_good + self._settings.self_kill:
                logger.error("%s: no heartbeat for %g s, giving the job up", self._ref.job_id, self._settings.self_kill)
                self._become(LeaseState.LOST)
                return
            remaining = self._last_good + self._settings.self_kill - now
            if self._state is LeaseState.HELD:
                if now >= self._deadline:
                    self._become(LeaseState.TIMED_OUT)
                remaining = min(remaining, max(0.0, self._deadline - now))
            if self._over.wait(remaining):
                return

    def close(self) -> None:
        self._over.set()
        self._ended.set()

    def _beat(self, connection: Connection, began: float) -> None:
        try:
            status = ledger.extend_lease(connection, self._ref, lease=self._settings.lease)
        except ledger.NotHeld:
            self._refused()
        else:
            self._last_good = began
            self._take_status(status)

    def _take_status(self, status: JobStatus) -> None:
        if status == JobStatus.CANCELLING:
            self._become(LeaseState.CANCELLING)

    def _refused(self) -> None:
        if not self._over.is_set():  # after the end, a refusal is the result of our own last write
            self._become(LeaseState.LOST)

    def _become(self, state: LeaseState) -> None:
        with self._lock:
            if self._state is LeaseState.LOST or self._state is state:
                return
            self._state = state
            child = self._child
        self._ended.set()
        if child is not None:
            process.kill_group(child)


@contextlib.contextmanager
def hold_lease(settings: Settings, ref: ledger.AttemptRef, *, seconds_left: float) -> Iterator[Lease]:
    """Hold the lease of ``ref`` while the ``with`` block runs; it times out after ``seconds_left``."""
    lease = Lease(settings, ref, seconds_left=seconds_left)
    threads = [
        # A context of its own for each: what they log is said of this job too.
        threading.Thread(target=copy_context().run, args=(lease.send_heartbeats,), name="heartbeat", daemon=True),
        threading.Thread(target=copy_context().run, args=(lease.watch,), name="self-kill", daemon=True),
    ]
    try:
        for thread in threads:
            thread.start()
        yield lease
    finally:
        lease.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join(CONNECT_SECONDS + STATEMENT_SECONDS)


def monotonic() -> float:
    """Seconds that also count while the machine is suspended, as the database's clock does."""
    return time.clock_gettime(CLOCK)
