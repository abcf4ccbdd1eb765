"""The computing process of an attempt: started with a clean environment, followed to its end, never left behind."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from core.crash_points import reach
from worker import process
from worker.machine import device, memory
from worker.runner import protocol
from worker.supervisor.attempt import Attempt
from worker.supervisor.relay import GivenUp, Progress, Relay, Stalled


@dataclass(frozen=True)
class Run:
    """How a runner ended."""

    last: protocol.LastWord | None
    """Its last word; None when it died without one."""
    how: str
    """The end of the sentence "the computing process …"."""
    out_of_memory: bool
    """The kernel killed it because memory ran out."""
    given_up: bool
    """We killed it because the worker had no more time to drain; ``how`` is the whole reason."""


def run(attempt: Attempt, relay: Relay, job_file: Path) -> Run:
    """Start the runner on ``job_file`` and relay what it says until it ends. Raises Lost, CancelRequested and
    TimedOut, as the lease does."""
    context = attempt.context
    home = job_file.parent / "home"
    (home / "tmp").mkdir(parents=True)
    kills = context.oom_kills()
    reach("spawn.before")
    child = process.start(
        [*context.runner, str(job_file)],
        environment=process.scrubbed_environment(
            home,
            # Temporary files too: what a killed runner leaves goes with the attempt's directory.
            {"TMPDIR": str(home / "tmp"), **device.visible(context.device, sharing=context.sharing)},
        ),
        log=attempt.log,
        directory=job_file.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    memory.give_up_first(child)
    reach("spawn.after")
    assert child.stdin is not None
    assert child.stdout is not None
    last: protocol.LastWord | None = None
    interruption: Stalled | GivenUp | None = None
    progress = Progress(silence=context.settings.stall_seconds, step=context.settings.step_seconds)
    with attempt.lease.guarding(child), child.stdout, child.stdin:
        try:
            last = relay.follow(
                child, draining=context.draining, progress=progress, drain_seconds=context.settings.drain_seconds
            )
        except (Stalled, GivenUp) as reason:
            interruption = reason
            process.kill_group(child)
        except BaseException:
            process.kill_group(child)
            raise
        finally:
            status = process.reap(child)
    end = str(interruption) if interruption is not None else process.describe_end(status)
    killed_by_kernel = status == -signal.SIGKILL and interruption is None
    return Run(
        last,
        end,
        out_of_memory=killed_by_kernel and context.oom_kills() > kills,
        given_up=isinstance(interruption, GivenUp),
    )


def out_of_memory() -> str:
    """Why it was killed, and what to do."""
    limit = memory.limit()
    limit_text = "" if limit is None else f" beside the worker's limit of {limit / 2**30:.1f} GiB"
    return (
        f"the kernel killed the computing process for want of memory{limit_text}: give the worker more, run fewer"
        " workers on the machine, or ask for fewer calibration samples (options.samples)"
    )
