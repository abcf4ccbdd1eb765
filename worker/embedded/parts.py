"""The child processes of ``qe serve``: started again when they die, and stopped in order."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import click

from worker import process

TICK_SECONDS = 0.1
RESTARTS = 5
RESTART_WINDOW = 60.0
PATIENCE = {"api": 10.0, "keeper": 10.0, "redis": 10.0, "postgres": 30.0}
"""Seconds from a polite signal to SIGKILL. A worker has as long as its block needs."""


class ServiceFailed(Exception):
    """The service cannot start or go on; the message is one line for the person at the terminal."""


@dataclass
class Part:
    """One child process of the service."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    stop_signal: signal.Signals = signal.SIGTERM
    child: subprocess.Popen[bytes] | None = None
    restarted_at: list[float] = field(default_factory=list)

    def running(self) -> bool:
        return self.child is not None and self.child.poll() is None


class Interrupts:
    """How often someone asked us to stop."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop_on_signal)

    def _stop_on_signal(self, *_: object) -> None:
        self.count += 1

    def check(self) -> None:
        """Raises KeyboardInterrupt once someone asked."""
        if self.count:
            raise KeyboardInterrupt


def look_after(parts: list[Part], interrupts: Interrupts) -> None:
    """Start again what dies, until someone interrupts. Raises KeyboardInterrupt, or ServiceFailed when it is no use."""
    while True:
        interrupts.check()
        for part in parts:
            if part.child is None or part.running():
                continue
            end = process.describe_end(process.reap(part.child))
            now = time.monotonic()
            part.restarted_at = [moment for moment in part.restarted_at if moment > now - RESTART_WINDOW] + [now]
            if len(part.restarted_at) > RESTARTS:
                raise ServiceFailed(f"{part.name} {end} for the {RESTARTS + 1}th time in a minute; see its log")
            click.echo(f"{part.name} {end}; starting it again", err=True)
            part.child = part.start()
        time.sleep(TICK_SECONDS)


def stop(parts: list[Part], interrupts: Interrupts) -> None:
    """No new requests, then no new blocks, then no keeper, then no servers. A further interrupt ends all at once."""
    first = interrupts.count
    groups: list[list[Part]] = [
        [part for part in parts if part.name == "api"],
        [part for part in parts if part.name.startswith("worker-")],
        [part for part in parts if part.name == "keeper"],
        [part for part in parts if part.name == "redis"],
        [part for part in parts if part.name == "postgres"],
    ]
    for group in groups:
        for part in group:
            if part.child is not None:
                process.send(part.child, part.stop_signal)
        for part in group:
            _await_end(part, lambda: interrupts.count > first)


def _await_end(part: Part, is_forced: Callable[[], bool]) -> None:
    if part.child is None:
        return
    patience = PATIENCE.get(part.name)
    deadline = None if patience is None else time.monotonic() + patience
    while part.running():
        if (is_forced() and part.name != "postgres") or (deadline is not None and time.monotonic() > deadline):
            process.kill_group(part.child)
        time.sleep(TICK_SECONDS / 2)
    process.reap(part.child)
