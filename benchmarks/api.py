"""Throughput and latency of the API beside a bare FastAPI with the same SQL statement, and a thousand event streams.

    python -m benchmarks.api [--few 10000] [--many 1000000] [--seconds 1] [--rounds 7] [--followers 1000]

Two bare ones (``benchmarks/api_bare.py``): on the driver itself, and on SQLAlchemy with the service's response model.
All are served by uvicorn from the same PostgreSQL (fsync off), the reader is one asyncio process with 16 connections,
and they take turns, so that whatever else the machine does falls on all. Ours does what the bare ones leave out: key,
tenant, row-level security, request id, metrics, access log; creating a job is seven statements in three round trips and
not one (bounds of the tenant, event, audit), and the message to the workers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from tests.services import TEMPLATE, running_postgres, running_redis
from worker.embedded.servers import free_port
from worker.process import reap, start

RESULTS = Path(__file__).parent / "results" / "api.md"
KEY = "qe_benchmark_key_0123456789_0123456789"
CONNECTIONS = 16
TARGET = 0.6
BODY = json.dumps({"model": {"id": "acme/m"}, "calibration": {"dataset": "acme/rows"}, "scheme": "W4A6"}).encode()
SERVED = (
    "app.main:create_app",
    "benchmarks.api_bare:create_app_on_the_same_library",
    "benchmarks.api_bare:create_app",
)
FILL = """
INSERT INTO jobs (id, tenant, spec, model_id, method, scheme, labels, created_at, queued_at, status, finished_at)
SELECT 'job_' || lpad(to_hex(n), 32, '0'), 'default', %(spec)s::jsonb, 'acme/m', 'qe', 'W4A6', '{}'::jsonb,
       '2026-01-01'::timestamptz + n * interval '1 second', '2026-01-01', 'cancelled', '2026-01-02'
FROM generate_series(%(first)s::int, %(last)s::int) AS n
"""
SPEC = {**json.loads(BODY), "method": "qe", "options": {}, "labels": {}, "timeout_s": 3600}
PLANS = {
    "one job": "SELECT * FROM jobs WHERE tenant = 'default' AND id = 'job_' || lpad(to_hex(5000), 32, '0')",
    "a page after a cursor": "SELECT * FROM jobs WHERE tenant = 'default'"
    " AND (created_at, id) < ('2026-01-01 01:00+00', 'job_') ORDER BY created_at DESC, id DESC LIMIT 21",
}


@dataclass(frozen=True)
class Measured:
    per_second: float
    p50: float
    p99: float


def request(method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


REQUESTS = {
    "GET job": request("GET", "/v1/jobs/job_" + f"{5000:032x}"),
    "list": request("GET", "/v1/jobs?limit=20"),
    "create": request("POST", "/v1/jobs", BODY),
}


@contextlib.contextmanager
def served(application: str, environment: dict[str, str], *, processes: int, log: Path) -> Iterator[tuple[int, int]]:
    """Port and process id."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", application, "--port", str(port), "--no-access-log"]
    command += ["--http", "app.web.kernel_copy:FileProtocol"]  # as we serve
    child = start([*command, "--workers", str(processes)], environment={**os.environ, **environment}, log=log)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                asyncio.run(load(port, REQUESTS["GET job"], seconds=0.2))
                break
            except (OSError, asyncio.IncompleteReadError):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{application} did not start: {log.read_text()[-2000:]}") from None
                time.sleep(0.2)
        yield port, child.pid
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        child.kill()
        reap(child)


async def load(port: int, what: bytes, *, seconds: float, connections: int = CONNECTIONS) -> Measured:
    """One request after another on each of the connections. Raises SystemExit for an answer that is not a success."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            began = time.perf_counter()
            writer.write(what)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            if head[9:10] != b"2":
                raise SystemExit(f"{head.splitlines()[0]!r} {answer[:300]!r}")
            took.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    took.sort()
    return Measured(len(took) / (time.perf_counter() - began), statistics.median(took), took[int(len(took) * 0.99)])


def compare(
    environment: dict[str, str], logs: Path, *, processes: int, seconds: float, rounds: int
) -> Iterator[tuple[str, list[Measured]]]:
    """Median of the rounds for each request, in the order of ``SERVED``."""
    with contextlib.ExitStack() as stack:
        ports = [
            stack.enter_context(served(application, environment, processes=processes, log=logs / f"{number}.log"))[0]
            for number, application in enumerate(SERVED)
        ]
        for what, sent in REQUESTS.items():
            turns = []
            for _ in range(rounds):
                turns.append([asyncio.run(load(port, sent, seconds=seconds)) for port in ports])
                if what == "create":
                    forget_queued(environment["QE_DATABASE_URL"])
            yield what, [_median([turn[which] for turn in turns]) for which in range(len(ports))]


def forget_queued(url: str) -> None:
    """Jobs of the rounds before: a tenant has a thousand waiting ones at most, by default."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM jobs WHERE status = 'queued'")
        connection.execute("VACUUM jobs")


def _median(rounds: list[Measured]) -> Measured:
    of: Callable[[str], float] = lambda name: statistics.median(getattr(each, name) for each in rounds)  # noqa: E731
    return Measured(of("per_second"), of("p50"), of("p99"))


async def follow(port: int, pid: int, url: str, followers: int, events: int) -> dict[str, float]:
    """Every follower must get every event; meanwhile somebody else asks for a job."""
    job_id = "job_" + f"{1:032x}"
    tree = psutil.Process(pid)
    memory = lambda: sum(each.memory_info().rss for each in (tree, *tree.children(recursive=True)))  # noqa: E731
    before = memory()
    head = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    seen = [0] * followers
    complete = asyncio.Event()
    got: list[int] = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Accept: text/event-stream\r\n\r\n".encode())
        async for line in reader:
            if line.startswith(b"id: "):
                if int(line[4:]) != seen[number] + 1:
                    raise SystemExit(f"follower {number}: event {int(line[4:])} after {seen[number]}")
                seen[number] += 1
                if seen[number] == events:
                    break
        writer.close()
        got.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(followers)]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE jobs SET event_seq = 0 WHERE id = %s", (job_id,))
        deadline = time.monotonic() + 120
        while _open(port) < followers and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
        during = memory()
        others = asyncio.create_task(load(port, REQUESTS["GET job"], seconds=events * 0.1, connections=4))
        began = time.monotonic()
        for _ in range(events):
            connection.execute(
                "WITH j AS (UPDATE jobs SET event_seq = event_seq + 1 WHERE id = %s RETURNING id, event_seq)"
                " INSERT INTO events (job_id, seq, type, data) SELECT id, event_seq, 'job.block', '{}' FROM j",
                (job_id,),
            )
            await asyncio.sleep(0.1)
        await asyncio.wait_for(asyncio.gather(*tasks), 120)
        complete.set()
        measured = await others
    return {
        "followers": followers,
        "events": events,
        "lost": followers * events - sum(seen),
        "kilobytes per follower": (during - before) / followers / 1000,
        "seconds from the last event to the last follower": time.monotonic() - began - events * 0.1,
        "p50 of others, ms": measured.p50 * 1000,
        "p99 of others, ms": measured.p99 * 1000,
    }


def _open(port: int) -> int:
    """Event streams, as the service's own metrics count them."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        for line in response.read().decode().splitlines():
            if line.startswith("qe_event_followers"):
                return int(float(line.split()[1]))
    return 0


def plans(url: str) -> Iterator[str]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE jobs")
        for what, statement in PLANS.items():
            rows = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}".encode()).fetchall()
            yield f"**{what}**\n\n```\n" + "\n".join(row[0] for row in rows) + "\n```\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--followers", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    lines = ["| jobs | processes | request | ours /s | of SQLAlchemy's | of the driver's | ours p50, p99 ms |"]
    lines += ["|---:|---:|---|---:|---:|---:|---:|"]
    with (
        tempfile.TemporaryDirectory() as directory,
        running_postgres() as postgres,
        running_redis() as redis_url,
        postgres.database(template=TEMPLATE) as url,
    ):
        environment = {
            "QE_DATABASE_URL": url,
            "QE_REDIS_URL": redis_url,
            "QE_API_KEY": KEY,
            "QE_HOME": directory,
            "QE_LOG_FORMAT": "json",
            "QE_MAX_QUEUED_JOBS": "1000000",
            "QE_REQUESTS_PER_MINUTE": "10000000",
        }
        first = 0
        for jobs in (arguments.few, arguments.many):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(FILL, {"spec": json.dumps(SPEC), "first": first, "last": jobs - 1})
                connection.execute("ANALYZE jobs")
            first = jobs
            for processes in (1, 2):
                for what, (ours, library, driver) in compare(
                    environment,
                    Path(directory),
                    processes=processes,
                    seconds=arguments.seconds,
                    rounds=arguments.rounds,
                ):
                    ratios = " | ".join(
                        f"{ours.per_second / bare.per_second:.0%} of {bare.per_second:.0f}"
                        for bare in (library, driver)
                    )
                    lines.append(
                        f"| {jobs:,} | {processes} | {what} | {ours.per_second:.0f} | {ratios}"
                        f" | {ours.p50 * 1000:.1f}, {ours.p99 * 1000:.1f} |"
                    )
                    print(lines[-1], flush=True)
        shown = list(plans(url))
        log = Path(directory) / "stream.log"
        with served("app.main:create_app", environment, processes=1, log=log) as (port, pid):
            streams = asyncio.run(follow(port, pid, url, arguments.followers, 50))
    for name, value in streams.items():
        print(f"{name}: {value:,.1f}")
    arguments.output.write_text(
        "# The API beside a bare FastAPI\n\n"
        f"`python -m benchmarks.api` on {os.cpu_count()} cores, load {load_before:.0f} from other work before it began,"
        f" {CONNECTIONS} connections, {arguments.rounds} rounds of {arguments.seconds:g} s in turns; medians. Target:"
        f" {TARGET:.0%} of a bare FastAPI's throughput: on SQLAlchemy with the same response model, and on the driver"
        " itself (`benchmarks/api_bare.py`).\n\n"
        + "\n".join(lines)
        + f"\n\n## Plans at {arguments.many:,} jobs\n\n"
        + "\n".join(shown)
        + "\n## Event streams of one job\n\n"
        + "\n".join(f"- {name}: {value:,.1f}" for name, value in streams.items())
        + "\n"
    )


if __name__ == "__main__":
    main()
