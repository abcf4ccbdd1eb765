"""Two ways in which a worker holds a job and is not heard of: stopped with its runner, or behind a cut cable.

Both end with another worker's result and nothing of the silent one. Without the fence, or without the self-kill, they
do not: see ``safeguards_off``.
"""

from __future__ import annotations

import signal
from typing import Any

import psutil

from tests.faults.campaign import Say
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.invariants import Violation
from tests.faults.process_table import state
from tests.services import wait_until

LEASES = {"lease": 2.0, "beat": 0.2, "self_kill": 1.4, "grace": 0.3}


def zombie(*, without: str = "") -> tuple[list[Violation], list[dict[str, Any]]]:
    """SIGSTOP of supervisor and runner past lease and grace, another worker takes over, SIGCONT.

    Returns the violations and the attempts of the job, after both workers had their say.
    """
    with running_cluster(workers=0, **LEASES) as cluster:
        first = cluster.add_worker(FAULTS_WITHOUT=without)
        cluster.wait_ready(first)
        job_id, runner, supervisor = _computing(cluster, "hold-1")
        for pid in (supervisor, runner):
            cluster.send(pid, signal.SIGSTOP)
        wait_until(lambda: {state(supervisor), state(runner)} == {"T"}, what="both stopped")
        heir = cluster.add_worker()
        cluster.wait_ready(heir)
        wait_until(
            lambda: any(running.attempt == 2 for running in cluster.runners()), seconds=60, what="another's runner"
        )
        # Both are before the second block; the stopped ones may go on first.
        for pid in (runner, supervisor):
            cluster.send(pid, signal.SIGCONT)
        if "fence" in without:
            (cluster.stage / "hold-1").unlink()
        else:
            wait_until(lambda: state(runner) in "ZX", what="the end of the stopped runner")
            # Only now may anybody go on: had anything of the stopped one counted, it would be there.
            (cluster.stage / "hold-1").unlink()
        cluster.wait_ended([job_id], seconds=60)
        wait_until(lambda: not cluster.runners(), seconds=60, what="the end of all runners")
        evidence_free = [violation for violation in cluster.violations() if violation.invariant != "I2"]
        return evidence_free, _attempts(cluster, job_id)


def cut_off(*, without: str = "") -> tuple[list[Violation], list[dict[str, Any]]]:
    """A worker's way to the database is cut while it computes, and all its processes run on; another takes over."""
    with running_cluster(workers=0, **LEASES) as cluster:
        url = cluster.add_user("far_away")
        first = cluster.add_worker(QE_DATABASE_URL=url, FAULTS_WITHOUT=without)
        cluster.wait_ready(first)
        job_id, runner, _ = _computing(cluster, "hold-1")
        # It computes whether or not somebody listens.
        heir = cluster.add_worker()
        cluster.wait_ready(heir)
        cluster.cut_off("far_away")
        wait_until(
            lambda: any(running.attempt == 2 for running in cluster.runners()), seconds=60, what="another's runner"
        )
        together = state(runner) in "RSD"
        wait_until(lambda: not together or cluster.witness.overlaps, what="the witness to see two runners at once")
        (cluster.stage / "hold-1").unlink()
        cluster.reconnect("far_away")
        cluster.wait_ended([job_id], seconds=60)
        wait_until(lambda: not cluster.runners(), seconds=60, what="the end of all runners")
        return cluster.violations(), _attempts(cluster, job_id)


def _computing(cluster: Cluster, sign: str) -> tuple[str, int, int]:
    """A job that is held before its second block: its id, its runner, its supervisor."""
    (cluster.stage / sign).touch()
    job_id = cluster.submit()
    wait_until((cluster.stage / "at-1").exists, seconds=60, what="the second block")
    runner = cluster.runners()[0].pid
    return job_id, runner, psutil.Process(runner).ppid()


def _attempts(cluster: Cluster, job_id: str) -> list[dict[str, Any]]:
    return cluster.rows("SELECT attempt, worker, outcome FROM attempts WHERE job_id = %s ORDER BY attempt", job_id)


def controls(say: Say) -> dict[str, Any]:
    """Each way with everything on, which must be clean, and with a safeguard off, which must be found."""
    cases = {
        "SIGSTOP past lease and grace, SIGCONT": (zombie, "", set()),
        "the same without fence and self-kill": (zombie, "fence,self-kill", {"I3", "I4", "I7"}),
        "the cable cut, all processes running": (cut_off, "", set()),
        "the same without self-kill": (cut_off, "self-kill", {"I2"}),
    }
    found: dict[str, list[str]] = {}
    violations: list[str] = []
    for name, (way, without, wanted) in cases.items():
        seen = [str(violation) for violation in way(without=without)[0]]
        found[name] = seen
        say(f"{name}: {seen or 'no violation'}")
        if not wanted:
            violations += seen
        elif not any(line.partition(":")[0] in wanted for line in seen):
            violations.append(f"control: {name} was not found out")
    return {"found": found, "violations": violations}
