"""Whether this worker may go on claiming: its disk, its devices, and what became of its last jobs.

A worker whose own faults fail job after job would empty the queue. After ``QE_SICK_AFTER`` jobs in a row it is
examined. When torch does not compute in a fresh process, or those jobs have gone further on other workers, it stops
until somebody has looked at it and starts it again. Otherwise the jobs may be to blame, and must not take the worker
from other tenants: it leaves the jobs of their tenants alone for a while, longer each time.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from core.settings import Settings
from worker import metrics
from worker.machine.device import CPU, Device, visible

logger = logging.getLogger(__name__)

PROBE_SECONDS = 60.0
FIRST_PAUSE = 30.0
LONGEST_PAUSE = 600.0

Probe = Callable[[str, Device], str | int]
"""``driver`` or ``compute``, and what a worker computes on → 1 for a GPU that answers, or what is wrong with it."""


def probe_device(kind: str, device: Device = CPU) -> str | int:
    """Ask ``worker.machine.device_probe`` in a process of its own, which may hang or die."""
    command = [sys.executable, "-m", "worker.machine.device_probe", kind]
    environment = {**os.environ, **visible(device, sharing=1)}
    try:
        answer = subprocess.run(  # noqa: S603 -- ours
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"the devices do not answer within {PROBE_SECONDS:g} seconds"
    except OSError as error:
        return f"the devices cannot be probed: {error}"
    words = answer.stdout.strip().splitlines()[-1:]
    if answer.returncode == 0 and words and words[0].isdecimal():
        return int(words[0])
    return (words or answer.stderr.strip().splitlines()[-1:] or [f"the probe ended with {answer.returncode}"])[0]


def unfit(settings: Settings) -> str | None:
    """Why no job may be taken now; None when the work directory takes files and has ``min_free_bytes`` left."""
    work = settings.work_directory
    try:
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=work, prefix=".fit-") as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
        free = shutil.disk_usage(work).free
    except OSError as error:
        return f"{work} cannot be written: {error.strerror or error}"
    if free < settings.min_free_bytes:
        return f"{work} has {free / 1e6:.0f} MB free, QE_MIN_FREE_BYTES asks for {settings.min_free_bytes / 1e6:.0f} MB"
    return None


@dataclass
class Health:
    """What one worker process knows of its own health."""

    probe: Probe = lambda kind, device: probe_device(kind, device)
    clock: Callable[[], float] = time.monotonic
    stopped: str | None = None
    """Why this worker takes no job any more."""
    failures: dict[str, str] = field(default_factory=dict)
    """Jobs that failed here since the last that went well, with their tenants."""
    reported: tuple[str, str | None] = ("ready", None)
    """What the ledger was last told of this worker."""
    _pauses: dict[str, float] = field(default_factory=dict)

    def reason(self, settings: Settings, device: Device) -> str | None:
        """Why no job may be taken now; None when one may."""
        if self.stopped is None:
            return unfit(settings) or self._broken(device)
        return self.stopped

    def _broken(self, device: Device) -> str | None:
        if device.uuid is None:
            return None
        count = self.probe("driver", device)
        if isinstance(count, str):
            return count
        return f"{device.name} {device.uuid} is gone" if count == 0 else None

    def passed_over(self) -> list[str]:
        """Tenants whose jobs are left alone for now."""
        return [tenant for tenant, until in self._pauses.items() if until > self.clock()]

    def resting(self) -> str | None:
        """Why the jobs of some tenants are passed over, in words for the ledger; None when none are."""
        tenants = self.passed_over()
        if not tenants:
            return None
        return f"{len(self.failures)} jobs failed here one after the other: jobs of {', '.join(tenants)} are left alone"

    def suspicious(self, settings: Settings) -> bool:
        return 0 < settings.sick_after <= len(self.failures)

    def record_success(self) -> None:
        """A job went well: earlier failures do not count any more."""
        self.failures.clear()
        self._pauses.clear()
        metrics.OWN_FAILURES.set(0)

    def record_failure(self, settings: Settings, device: Device, *, job_id: str, tenant: str, reason: str) -> None:
        """A job failed by what may be this worker's fault."""
        logger.warning("%s failed by what may be this worker's fault: %s", job_id, reason)
        self.failures[job_id] = tenant
        metrics.OWN_FAILURES.set(len(self.failures))
        if not self.suspicious(settings):
            return
        outcome = self.probe("compute", device)
        if isinstance(outcome, str):
            self.stop(outcome)
            return
        pause = min(FIRST_PAUSE * 2 ** (len(self.failures) - settings.sick_after), LONGEST_PAUSE)
        self._pauses |= dict.fromkeys(self.failures.values(), self.clock() + pause)

    def stop(self, reason: str) -> None:
        self.stopped = f"{reason}; look at this machine, then start the worker again"
