"""Runs of the real library that are killed, on real workers: each must end with the bytes of an undisturbed one."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import crash_points
from demo.model import make_qwen2_vl
from demo.rows import make_rows
from tests.faults.campaign import Say, Storm
from tests.faults.cluster import Cluster, add_dataset, running_cluster

BLOCKS = 2
OPTIONS = {"group_size": 32, "shared_rank": 4, "routed_rank": 4, "experts": 2, "important_channels": 4, "samples": 4}
SERVICE_POINTS = ("upload.before", "upload.after", "layer.before_commit", "layer.after_commit", "artifact.uploaded",
                  "artifacts.before_commit", "end.before_commit", "spawn.after")  # fmt: skip
LEASES = {"lease": 20.0, "beat": 1.0, "self_kill": 15.0, "grace": 1.0}
"""Loading torch takes a whole core for seconds; heartbeats must not starve meanwhile."""


def make_small_model(directory: Path) -> None:
    make_qwen2_vl(directory, hidden=64, blocks=BLOCKS, intermediate=96, vision_depth=1, vision_width=32)


def prepare(cluster: Cluster) -> dict[str, Any]:
    """Model and rows; the body of a job on them."""
    shutil.rmtree(cluster.directory / "models" / "small")
    make_small_model(cluster.directory / "models" / "small")
    rows = io.StringIO()
    for row in make_rows(6):
        rows.write(json.dumps(row) + "\n")
    dataset = add_dataset(cluster, "ds_real", rows.getvalue().encode())
    return {"calibration": {"dataset": dataset}, "options": OPTIONS}


def ways_to_die(draw: random.Random) -> Iterator[tuple[str, str]]:
    """(point or kind of victim, passes), without end; every point of the library before any a second time."""
    while True:
        deaths = [(point, str(draw.randint(1, 3))) for point in crash_points.LIBRARY if point != "checkpoint.checked"]
        deaths += [("checkpoint.checked", "1"), ("checkpoint.named", "1")]
        deaths += [(point, "1") for point in draw.sample(SERVICE_POINTS, 4)]
        deaths += [("runner", ""), ("supervisor", ""), ("worker", "")]
        draw.shuffle(deaths)
        yield from deaths


def killed_runs(*, seed: int, say: Say, runs: int, workers: int, seconds: float) -> dict[str, Any]:
    """At least ``runs`` runs that were killed once or more, beside one that was not."""
    draw = random.Random(seed)
    record = Storm(seed, say)
    with running_cluster(workers=workers, runner="real", **LEASES) as cluster:
        body = prepare(cluster)
        reference = cluster.submit(**body)
        cluster.wait_ended([reference], seconds=seconds)
        assert cluster.job(reference)["status"] == "succeeded", cluster.job(reference)["error"]
        say(f"the undisturbed run took {time.monotonic() - record.started:.0f} s with the start of everything")
        deaths = ways_to_die(draw)
        deadline = time.monotonic() + seconds
        pending: list[Path] = []
        while True:
            jobs = cluster.rows("SELECT id, status, attempt FROM jobs WHERE id <> %s", reference)
            killed = sum(job["attempt"] > 1 for job in jobs)
            unfinished = [job for job in jobs if job["status"] in ("queued", "running")]
            if killed >= runs and not unfinished:
                break
            if time.monotonic() > deadline:
                raise AssertionError(f"{killed} killed runs within {seconds:g} s, {len(unfinished)} unfinished")
            for _ in range(workers - len(unfinished) if killed < runs else 0):
                cluster.submit(**body)
            for sign in [sign for sign in pending if not sign.exists()]:
                pending.remove(sign)
                record.did("kill at a point", f"SIGKILL at {sign.name.removeprefix('kill-')}")
            fresh = [job for job in unfinished if job["status"] == "running" and job["attempt"] == 1]
            if killed >= runs:
                for sign in pending:
                    sign.unlink(missing_ok=True)
                pending = []
            elif len(pending) < len(fresh):
                _threaten(cluster, record, draw, *next(deaths), pending)
            cluster.revive()
            time.sleep(0.2)
        violations = cluster.violations(reclaim=True)
        attempts = cluster.rows("SELECT job_id, outcome, resumed_from_block FROM attempts ORDER BY job_id, attempt")
        artifacts = cluster.rows("SELECT count(DISTINCT name) AS files, count(DISTINCT job_id) AS jobs FROM artifacts")
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - record.started),
        "runs": len(jobs) + 1,
        "killed_runs": killed,
        "kills": dict(sorted(Counter(line.rpartition("  ")[2] for line in record.log).items())),
        "attempts": len(attempts),
        "resumed_at_block": dict(sorted(Counter(str(row["resumed_from_block"]) for row in attempts).items())),
        "files_per_run": artifacts[0]["files"],
        "violations": [str(violation) for violation in violations],
    }


def _threaten(
    cluster: Cluster, record: Storm, draw: random.Random, death: str, passes: str, pending: list[Path]
) -> None:
    if death in crash_points.NAMES:
        sign = cluster.crash_points / f"kill-{death}"
        if not sign.exists():
            sign.write_text(passes)
            pending.append(sign)
    elif pids := cluster.victims(death):
        pid = draw.choice(pids)
        if cluster.runners():
            cluster.send(pid, signal.SIGKILL)
            record.did(f"kill {death}", f"SIGKILL of a {death}")
