"""The computing process of an attempt: started with a clean environment, followed to its end, never left behind."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from app.contract.crash_points import reach
from worker import device, memory, process, protocol
from worker.hands import Hands
from worker.lease import Lease
from worker.relay import Relay


@dataclass(frozen=True)
class Run:
    """How a runner ended."""

    last: protocol.LastWord | None
    """Its last word; None when it died without one."""
    status: int
    out_of_memory: bool
    """The kernel killed it for want of memory."""


def run(hands: Hands, lease: Lease, relay: Relay, job_file: Path, log: Path) -> Run:
    home = job_file.parent / "home"
    (home / "tmp").mkdir(parents=True)
    kills = hands.oom_kills()
    reach("spawn.before")
    child = process.start(
        [*hands.runner, str(job_file)],
        environment=process.scrubbed_environment(
            home,
            # Temporary files too: what a killed runner leaves goes with the attempt's directory.
            {"TMPDIR": str(home / "tmp"), **device.visible(hands.device, sharing=hands.sharing)},
        ),
        log=log,
        directory=job_file.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    memory.give_up_first(child)
    reach("spawn.after")
    assert child.stdin is not None
    assert child.stdout is not None
    with lease.guarding(child), child.stdout, child.stdin:
        try:
            last = relay.follow(child, draining=hands.draining)
        except BaseException:
            process.kill_group(child)
            raise
        finally:
            status = process.reap(child)
    return Run(last, status, out_of_memory=status == -signal.SIGKILL and hands.oom_kills() > kills)


def out_of_memory() -> str:
    """Why it was killed, and what to do."""
    limit = memory.limit()
    bound = "" if limit is None else f" beside the worker's limit of {limit / 2**30:.1f} GiB"
    return (
        f"the kernel killed the computing process for want of memory{bound}: give the worker more, run fewer workers on"
        " the machine, or ask for fewer calibration samples (options.samples)"
    )
