"""What a supervisor works with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from core.settings import Settings
from core.storage import Storage
from core.tracing import OFF, Tracing
from worker.machine import memory
from worker.machine.device import CPU, Device
from worker.machine.health import Health

RUNNER = (sys.executable, "-m", "worker.runner.job")


@dataclass(frozen=True)
class WorkerContext:
    settings: Settings
    storage: Storage
    worker: str
    """Who we are, in the ledger."""
    draining: Callable[[], bool]
    """True as soon as this worker is to stop: the block in hand is finished, the job handed back."""
    notify: Callable[[str], object]
    """Tells other workers that a job waits; never raises."""
    runner: tuple[str, ...] = RUNNER
    """The command that computes; the path of the job file is appended."""
    oom_kills: Callable[[], int] = memory.oom_kills
    """The kernel's count of kills for want of memory."""
    tracing: Tracing = OFF
    device: Device = CPU
    """The one that its runners see."""
    sharing: int = 1
    """Runners on this machine that share its memory and cores, this one included."""
    health: Health = field(default_factory=Health)
