"""Crash points x victims: a process stops at a named point, somebody is killed there, everything is started again.

The process that reaches the point stops itself, so the kill hits exactly there whoever the victim is. Then it is woken,
unless it was the victim, the dead are started again, and the job must end as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from core import crash_points
from tests.faults.cluster import VICTIMS, Cluster, running_cluster
from tests.faults.process_table import ancestors, state
from tests.services import wait_until

SELF = "itself"
"""The victim that is the process which reaches the point."""
OWN = {
    **dict.fromkeys(crash_points.LIBRARY, "runner"),
    **dict.fromkeys(crash_points.SUPERVISOR, "supervisor"),
    **dict.fromkeys(crash_points.KEEPER, "keeper"),
    **dict.fromkeys(crash_points.API, "api"),
}
"""Crash point → the kind of process that reaches it."""
STANDIN_POINTS = [name for name in crash_points.NAMES if name not in {*crash_points.LIBRARY, *crash_points.PUSHER}]
"""Stand-ins finish no file that could be pushed: tests/worker/test_pushes.py kills pushers."""
SECONDS = 120.0


@dataclass(frozen=True)
class Strike:
    """What happened at one point."""

    point: str
    victim: str
    pid: int | None
    """None when no such process lived at the point, so that nobody was killed."""
    job_id: str | None
    """None when the point lies on no job's way."""

    def __str__(self) -> str:
        what = f"killed {self.victim} {self.pid}" if self.pid else f"no {self.victim} lives there"
        return f"{self.point}: {what}" + (f", {self.job_id}" if self.job_id else "")


def strike(cluster: Cluster, point: str, victim: str = SELF, *, seconds: float = SECONDS) -> Strike:
    """Kill ``victim`` when ``point`` is reached, and start again what died. The job concerned is not waited for."""
    victim = OWN[point] if victim == SELF else victim
    sign, told = (cluster.crash_points / f"{what}-{point}" for what in ("stop", "stopped"))
    told.unlink(missing_ok=True)
    with _bound_for(cluster, point, sign) as outcome:
        wait_until(
            lambda: told.exists() and state(_pid_in(told)) == "T",
            seconds=seconds,
            what=f"a process stopped at {point}",
        )
        stopped = _pid_in(told)
        pid = _near(cluster, victim, stopped)
        if pid is not None:
            cluster.send(pid)
            cluster.wait_gone(pid)
        cluster.send(stopped, signal.SIGCONT)
        cluster.revive(ready=True)
    return Strike(point, victim, pid, outcome.job_id)


def _pid_in(sign: Path) -> int:
    """0 while it is being written."""
    return int(sign.read_text() or 0)


class _Outcome:
    job_id: str | None = None


@contextlib.contextmanager
def _bound_for(cluster: Cluster, point: str, sign: Path) -> Iterator[_Outcome]:
    """The sign is up and something comes to ``point``; on the way out the client has its answer."""
    outcome = _Outcome()

    def create() -> None:
        outcome.job_id = cluster.submit(seconds=SECONDS)

    def upload() -> None:
        row = b'{"messages": [{"role": "user", "content": "Which colour?"}]}\n'
        with contextlib.suppress(httpx.TransportError), cluster.client() as client:
            client.post("/v1/datasets", files={"file": ("rows.jsonl", row)})

    if not point.startswith(("reap.", "sweep.")):
        sign.touch()
    with ThreadPoolExecutor(1) as client:
        if point.startswith("reap."):
            # A worker that goes silent amid a job, which nobody ends meanwhile; others would wait there too.
            cluster.wait_ended(seconds=SECONDS)
            sign.touch()
            held = cluster.stage / "hold-2"
            held.touch()
            create()
            ours = _supervisor_of(cluster, outcome.job_id)
            cluster.send(ours)
            wait_until(lambda: state(ours) in "ZX", what="the supervisor's end")
            held.unlink()
            asked = None
        elif point.startswith("sweep."):
            # A new keeper begins with a sweep, and there is something to sweep. The old one may be about to sweep too.
            create()
            cluster.wait_ended(seconds=SECONDS)
            cluster.kill("keeper")
            wait_until(cluster.dead, what="the keeper's end")
            sign.touch()
            cluster.revive()
            asked = None
        else:
            asked = client.submit(upload if point == "dataset.stored" else create)
        yield outcome
        if asked is not None:
            asked.result(2 * SECONDS)


def _supervisor_of(cluster: Cluster, job_id: str | None) -> int:
    """The process that holds the job, as soon as its runner computes."""

    def computing() -> list[int]:
        return [running.pid for running in cluster.runners() if running.job_id == job_id]

    wait_until(computing, seconds=SECONDS, what="a runner of the job")
    return next(ancestors(computing()[0]))


def _near(cluster: Cluster, kind: str, stopped: int) -> int | None:
    """The victim of ``kind`` that has most to do with the stopped process."""
    victims = cluster.victims(kind)
    if stopped in victims or (kind in ("runner", "supervisor") and _is(cluster, kind, stopped)):
        return stopped
    family = {stopped, *ancestors(stopped)}
    related = [pid for pid in victims if pid in family or stopped in ancestors(pid)]
    if kind == "runner":
        return related[0] if related else None
    return (related or victims or [None])[0]


def _is(cluster: Cluster, kind: str, pid: int) -> bool:
    """Whether the stopped process, which no longer computes, is of ``kind``."""
    parents = list(ancestors(pid))
    mains = cluster.victims("worker")
    depth = {"supervisor": 1, "runner": 2}[kind]
    return len(parents) >= depth and parents[depth - 1] in mains


def every_combination(*, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Each point of the service with each kind of victim, in an order drawn from the seed."""
    pairs = [(point, victim) for point in STANDIN_POINTS for victim in VICTIMS]
    random.Random(seed).shuffle(pairs)
    killed: dict[str, dict[str, int]] = {point: dict.fromkeys(VICTIMS, 0) for point in STANDIN_POINTS}
    began = time.monotonic()
    with running_cluster(lease=3.0, beat=0.25, self_kill=2.0, grace=0.5) as cluster:
        for number, (point, victim) in enumerate(pairs, start=1):
            hit = strike(cluster, point, victim)
            killed[point][victim] += hit.pid is not None
            say(f"strike {number:3} seed {seed} +{time.monotonic() - began:6.1f} s  {hit}")
        cluster.wait_ended()
        violations = [str(violation) for violation in cluster.violations(reclaim=True)]
        jobs = cluster.rows("SELECT count(*) AS jobs FROM jobs")[0]["jobs"]
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "jobs": jobs,
        "killed": killed,
        "kills": sum(sum(row.values()) for row in killed.values()),
        "violations": violations,
    }
