"""What does the service itself cost, and does it lose or double anything under load?

Twenty clients queue jobs at once through the real API; four real Celery workers run them with a runner that computes
nothing (``benchmarks/load/trivial_runner.sh``) on real PostgreSQL and Redis, with the settings of production.

    python -m benchmarks.load                            # 2000 jobs
    python -m benchmarks.load --jobs 200 --clients 5     # a quick look
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import re
import sys
import time
import uuid
from collections import defaultdict
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx

from tests.faults.cluster import KEY, Cluster, running_cluster
from worker.ledger import claims

RESULT = Path(__file__).parent.parent / "results" / "load.md"
PRODUCTION = {
    "lease": 120.0,
    "beat": 20.0,
    "self_kill": 90.0,
    "grace": 30.0,
    "ring_again": 60.0,
    "keeper_interval": 5.0,
    "barren_attempts": 3,
    "max_queued_jobs": 1_000_000,  # jobs are made faster than they run, and the bound of a thousand would be met
}
IDLE_JOBS = 20
COUNTED_JOBS = 10
PROBES = 300


def add_worker(cluster: Cluster, number: int) -> None:
    name = f"worker-{number}"
    command = [sys.executable, "-m", "celery", "--app", "benchmarks.load.trivial_celery:app", "worker"]
    command += ["--queues", "qe.jobs", "--pool", "prefork", "--concurrency", "1", "--hostname", f"{name}@faults"]
    cluster.add_part(name, [*command, "--without-gossip", "--without-mingle", "--loglevel", "WARNING"])


async def client(
    cluster: Cluster, jobs: int, seconds: dict[str, list[float]], answers: dict[str, set[str]]
) -> list[str]:
    """Create ``jobs`` jobs, each with a key of its own, and look at them as a user does until they have ended."""
    url = f"http://127.0.0.1:{cluster.settings.port}"
    made: list[str] = []
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as api:

        async def timed(route: str, answer: Any) -> Any:
            began = time.perf_counter()
            response = await answer
            seconds[route].append(time.perf_counter() - began)
            return response

        for _ in range(jobs):
            key = uuid.uuid4().hex
            body = {
                "model": {"id": "local/small"},
                "calibration": {"dataset": "ds_rows"},
                "scheme": "W4A6",
                "labels": {"key": key},
            }
            headers = {"Idempotency-Key": key}
            response = await timed("POST /v1/jobs", api.post("/v1/jobs", json=body, headers=headers))
            assert response.status_code == 201, response.text
            made.append(response.json()["id"])
            answers.setdefault(key, set()).add(made[-1])
        waiting = list(made)
        while waiting:
            job_id = random.choice(waiting[:5])
            response = await timed("GET /v1/jobs/{id}", api.get(f"/v1/jobs/{job_id}"))
            if response.json()["status"] in ("succeeded", "failed", "cancelled"):
                waiting.remove(job_id)
                continue
            response = await timed("GET /v1/jobs", api.get("/v1/jobs?limit=20"))
            assert response.status_code == 200, response.text
            await asyncio.sleep(0.5)
    return made


def probe_claims(cluster: Cluster, seconds: list[float]) -> None:
    """Time the claim itself against the workers, and roll it back."""
    with cluster.connect() as connection:
        for _ in range(PROBES):
            with connection.transaction(force_rollback=True):
                began = time.perf_counter()
                claims.claim(connection, worker="probe", lease=1)
                seconds.append(time.perf_counter() - began)
            time.sleep(0.05)


async def load(cluster: Cluster, *, jobs: int, clients: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = defaultdict(list)
    began = time.perf_counter()
    probing = asyncio.to_thread(probe_claims, cluster, seconds["the claim itself, beside the workers"])
    made, *_ = await asyncio.gather(
        asyncio.gather(*(client(cluster, jobs // clients, seconds, cluster.answers) for _ in range(clients))), probing
    )
    for ids in made:
        cluster.accepted.update(ids)
    return {"seconds": seconds, "wall": time.perf_counter() - began}


def pick_up(cluster: Cluster) -> list[float]:
    """From the row's creation to its claim, when a worker is idle: what the wake-up takes."""
    ids = []
    for _ in range(IDLE_JOBS):
        ids.append(cluster.submit())
        cluster.wait_ended([ids[-1]])
    rows = cluster.rows(
        "SELECT EXTRACT(EPOCH FROM started_at - created_at)::float8 AS seconds FROM jobs WHERE id = ANY(%s)", ids
    )
    return [row["seconds"] for row in rows]


def statements(cluster: Cluster) -> tuple[float, float]:
    """Statements and transactions of PostgreSQL per job, from its log: from the creation to the end, one at a time."""
    log = cluster.log / "postgres.log"

    def settle(value: str) -> None:
        with cluster.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET log_statement = {value}".encode())
            connection.execute("SELECT pg_reload_conf()")

    settle("'all'")
    time.sleep(1)
    before = log.stat().st_size
    for _ in range(COUNTED_JOBS):
        job_id = cluster.submit()
        wait_quietly(cluster, job_id)
    text = log.read_bytes()[before:].decode(errors="replace")
    settle("'none'")
    lines = re.findall(r"LOG:  (?:statement|execute [^:]*): (.*)", text)
    asked = [line for line in lines if "wait_quietly" not in line]
    return len(asked) / COUNTED_JOBS, sum(line.upper().startswith("COMMIT") for line in asked) / COUNTED_JOBS


def wait_quietly(cluster: Cluster, job_id: str) -> None:
    with cluster.connect() as connection:
        while not connection.execute(
            "SELECT 1 /* wait_quietly */ FROM jobs WHERE id = %s AND status = 'succeeded'", (job_id,)
        ).fetchone():
            time.sleep(0.02)


def percentile(values: list[float], rank: int) -> str:
    return f"{1000 * quantiles(values, n=100)[rank - 1]:.0f} ms"


def report(arguments: argparse.Namespace, cluster: Cluster, found: dict[str, Any]) -> str:
    (counts,) = cluster.rows(
        "SELECT (SELECT count(*) FROM jobs) AS jobs,"
        " (SELECT count(*) FROM jobs WHERE status = 'succeeded') AS succeeded,"
        " (SELECT count(*) FROM attempts) AS attempts,"
        " (SELECT count(*) FROM events WHERE type = 'job.succeeded') AS ends"
    )
    violations = cluster.violations()
    rows = [
        f"| {name} | {len(values)} | {percentile(values, 50)} | {percentile(values, 99)} | {max(values):.2f} s |"
        for name, values in found["seconds"].items()
    ]
    loads = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    per_job, commits = found["statements"]
    return "\n".join(
        [
            "# The service under load",
            "",
            "```console",
            f"$ python -m benchmarks.load --jobs {arguments.jobs} --clients {arguments.clients}"
            f" --workers {arguments.workers}",
            "```",
            "",
            f"{os.cpu_count()} cores ({platform.machine()}), one API process, {arguments.workers} Celery workers, a"
            " runner that computes nothing, PostgreSQL 18 and Redis 6.2 from wheels, clients on the same machine."
            f" Load average {loads} at the end, with what the benchmark itself starts.",
            "",
            f"- {arguments.jobs} jobs queued by {arguments.clients} clients: {counts['jobs']} rows with those below,"
            f" {counts['succeeded']} succeeded, {counts['ends']} ends, {counts['attempts']} attempts;"
            f" **{len(violations)} violations** of the invariants of `tests/faults`: none lost, none doubled."
            if not violations and counts["jobs"] == counts["succeeded"] == counts["ends"]
            else f"- VIOLATIONS: {counts} {violations}",
            f"- {found['wall']:.0f} s from the first request to the last job's end:"
            f" {arguments.jobs / found['wall']:.1f} jobs/s.",
            f"- {per_job:.0f} statements of PostgreSQL per job, BEGIN and COMMIT included, {commits:.0f} of them COMMIT"
            f" (counted in its log over {COUNTED_JOBS} jobs of one block, creation, heartbeats, keeper and presence"
            " included).",
            "",
            "| | n | p50 | p99 | worst |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with running_cluster(workers=0, crash_points=False, **PRODUCTION) as cluster:
        for number in range(1, arguments.workers + 1):
            add_worker(cluster, number)
        cluster.wait_ready(*(f"worker-{number}" for number in range(1, arguments.workers + 1)))
        found = asyncio.run(load(cluster, jobs=arguments.jobs, clients=arguments.clients))
        print(f"load: {found['wall']:.0f} s", flush=True)
        found["seconds"]["from created to claimed, a worker idle"] = pick_up(cluster)
        found["statements"] = statements(cluster)
        text = report(arguments, cluster, found)
    arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
