"""Many workers and API replicas on one real PostgreSQL and one Redis: what they need, and what breaks first.

    python -m benchmarks.scaling [--seconds 20] [--steps 200:10 200:2] [--pgbouncer PATH]

Workers are threads of a few processes, without torch: each claims, keeps its lease, and records phases, progress,
blocks and the end through the product's own functions (``worker.ledger``, ``hold_lease``, ``FencedWriter``),
with blocks that take a given time; it waits for wake-ups with BRPOP as Celery does. API replicas are
the real application, each with its own pools, in one process without sockets: clients make jobs as fast as workers end
them, list and read jobs, and follow events. A step is WORKERS:SECONDS of a block.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import redis

from app.main import create_app
from core.contract.ids import new_id
from core.settings import Settings
from core.wakeup import QUEUE
from tests.services import TEMPLATE, Postgres, running_postgres, running_redis
from worker.embedded.servers import free_port
from worker.ledger import attempts as ledger
from worker.ledger import blocks, claims
from worker.ledger.connection import connect
from worker.process import start
from worker.supervisor.fenced_writer import FencedWriter
from worker.supervisor.lease import CancelRequested, Lost, hold_lease

RESULTS = Path(__file__).parent / "results" / "scaling.md"
KEY = "qe_benchmark_key_0123456789_0123456789"
STEPS = ("50:10", "100:10", "200:10", "200:4", "200:2", "200:1", "200:0.5")
BLOCKS = 4
REPLICAS = 10
FOLLOWERS = 10
"""Of each replica."""
READS_A_SECOND = 2
"""Of each replica: a list of jobs, and one job."""
WORKERS_OF_A_PROCESS = 50
FILL_SECONDS, NEARLY = 90.0, 0.9
MODEL, DATASET = "acme/vl", "acme/rows"


@dataclass
class Times:
    """Seconds, by what took them."""

    took: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def of(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except (psycopg.Error, httpx.HTTPError) as error:
            name = f"{what}: {type(error).__name__}"
            self.errors[name] = self.errors.get(name, 0) + 1
            raise
        self.took.setdefault(what, []).append(time.perf_counter() - began)

    def add(self, other: dict[str, Any]) -> None:
        for what, seconds in other["took"].items():
            self.took.setdefault(what, []).extend(seconds)
        for what, count in other["errors"].items():
            self.errors[what] = self.errors.get(what, 0) + count

    def quantile(self, what: str, share: float) -> float:
        found = sorted(self.took.get(what, [float("nan")]))
        return found[min(len(found) - 1, int(share * len(found)))]


# Workers


def workers(settings: Settings, name: str, count: int, block_seconds: float) -> None:
    """Until stdin closes; then what was measured goes to stdout."""
    over, times = threading.Event(), Times()
    threads = [
        threading.Thread(target=_worker, args=(settings, f"{name}-{number}", block_seconds, over, times), daemon=True)
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join(10)
    print(json.dumps({"took": times.took, "errors": times.errors}))


def _worker(settings: Settings, name: str, block_seconds: float, over: threading.Event, times: Times) -> None:
    over.wait(random.uniform(0, min(block_seconds, 5)))
    wakeups = redis.Redis.from_url(str(settings.redis_url))
    while not over.is_set():
        with contextlib.suppress(psycopg.Error):
            claim = _claim(settings, name, times)
            if claim is None:
                while not over.is_set() and not _heard(wakeups):
                    continue
                continue
            with contextlib.suppress(Lost, CancelRequested):
                _attempt(settings, claim, block_seconds, over, times)


def _heard(wakeups: redis.Redis) -> bool:
    """Celery asks every second; nobody claims without a wake-up."""
    with contextlib.suppress(redis.RedisError):
        return wakeups.brpop([QUEUE], timeout=1) is not None
    return False


def _claim(settings: Settings, name: str, times: Times) -> claims.Claim | None:
    with times.of("claim"), connect(settings.database_url or "") as connection:
        claim = claims.claim(connection, worker=name, lease=settings.lease, max_running=None)
    if claim is not None:
        times.took.setdefault("waited", []).append(claim.waited)
    return claim


def _attempt(
    settings: Settings, claim: claims.Claim, block_seconds: float, over: threading.Event, times: Times
) -> None:
    ref = claim.ref
    with (
        hold_lease(settings, ref, seconds_left=3600) as lease,
        FencedWriter(settings.database_url or "", ref, lease) as writer,
    ):
        for block in range(BLOCKS):
            for share in (1, 2):  # what a runner says of itself in between
                lease.wait(block_seconds / 2 * random.uniform(0.9, 1.1))
                if over.is_set():
                    writer.write(ledger.hand_back, reason="the simulation is over")
                    return
                with times.of("progress"):
                    writer.write(ledger.set_progress, {"phase": "fitting", "group": f"down.{share}"}, blocks=BLOCKS)
            file = {"name": f"blocks/{block:05}.bin", "bytes": 1, "sha256": "00", "key": f"jobs/{ref.job_id}/{block}"}
            with times.of("block"):
                writer.write(
                    blocks.record_block, block=block, blocks=BLOCKS, seconds=block_seconds,
                    report={"groups": [{"name": "down", "error": 0.01}] * 4}, files=[file], superseded=[],
                    event={"block": block, "blocks": BLOCKS, "seconds": block_seconds},
                )  # fmt: skip
        artifact = {"name": "model", "key": ref.job_id, "bytes": 1, "sha256": "00", "media_type": "x"}
        with times.of("end"):
            writer.write(ledger.succeed, summary={}, artifacts=[artifact])


# API replicas


async def replicas(settings: Settings, *, jobs_a_second: float, seconds: float, times: Times) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for _ in range(REPLICAS):
            app = create_app(settings)
            await stack.enter_async_context(app.router.lifespan_context(app))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            headers = {"Authorization": f"Bearer {KEY}"}
            client = httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers, timeout=60)
            logging.disable()
            clients.append(await stack.enter_async_context(client))
        lives = [_creates(clients, jobs_a_second, times)]
        for client in clients:
            lives += [_reads(client, times), *(_follows(app_of(client), times) for _ in range(FOLLOWERS))]
        tasks = [asyncio.create_task(life) for life in lives]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def app_of(client: httpx.AsyncClient) -> Any:
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    return transport.app


async def _creates(clients: Sequence[httpx.AsyncClient], a_second: float, times: Times) -> None:
    """Open loop: a client does not wait for the one before."""
    body = {"model": {"id": MODEL}, "calibration": {"dataset": DATASET}, "scheme": "W4A6"}
    running: set[asyncio.Task[None]] = set()

    async def create(client: httpx.AsyncClient) -> None:
        with contextlib.suppress(httpx.HTTPError), times.of("POST /v1/jobs"):
            (await client.post("/v1/jobs", json=body)).raise_for_status()

    began, number = time.perf_counter(), 0
    while True:
        await asyncio.sleep(max(0.0, began + number / a_second - time.perf_counter()))
        task = asyncio.create_task(create(clients[number % len(clients)]))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1


async def _reads(client: httpx.AsyncClient, times: Times) -> None:
    while True:
        await asyncio.sleep(random.expovariate(READS_A_SECOND))
        with contextlib.suppress(httpx.HTTPError):
            with times.of("GET /v1/jobs"):
                page = (await client.get("/v1/jobs?limit=20")).raise_for_status().json()["data"]
            if page:
                with times.of("GET /v1/jobs/{id}"):
                    (await client.get(f"/v1/jobs/{random.choice(page)['id']}")).raise_for_status()


async def _follows(app: Any, times: Times) -> None:
    """A follower of running jobs through the feed of its replica, as the stream of events reads it."""
    service = app.state.service
    from app.access.auth import DEFAULT_TENANT, Caller

    sessions = service.sessions_of(Caller("bootstrap", DEFAULT_TENANT, frozenset()))
    while True:
        async with service.sessions() as session:
            found = (await session.connection()).exec_driver_sql
            rows = (await found("SELECT id FROM jobs WHERE lease_until IS NOT NULL ORDER BY random() LIMIT 1")).all()
        if not rows:
            await asyncio.sleep(1)
            continue
        with app.state.feed.following(rows[0][0], tenant=DEFAULT_TENANT, sessions=sessions) as channel:
            until = time.perf_counter() + 10
            while time.perf_counter() < until:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):  # wait_for of Python 3.11 can lose a cancellation
                        await channel.changed.wait()
                if channel.tail:
                    times.took.setdefault("followed", []).append(0.0)


# One step


@dataclass(frozen=True)
class Servers:
    postgres: Postgres
    database: str
    redis: str
    pooled: str | None
    """The same database through a pooler."""


def step(servers: Servers, *, count: int, block_seconds: float, seconds: float) -> dict[str, Any]:
    times = Times()
    url = servers.pooled or servers.database
    direct = psycopg.connect(servers.database, autocommit=True)
    direct.execute("TRUNCATE jobs CASCADE")
    settings = Settings(
        home=Path(tempfile.mkdtemp(prefix="qe-scaling-")), api_key=KEY, secret="s" * 40, database_url=url,
        redis_url=servers.redis, requests_per_minute=0, max_queued_jobs=100_000,
    )  # fmt: skip
    jobs_a_second = count / (BLOCKS * block_seconds)
    _stock(direct, 2 * count)
    children = []
    for first in range(0, count, WORKERS_OF_A_PROCESS):
        amount = min(WORKERS_OF_A_PROCESS, count - first)
        command = [sys.executable, "-m", "benchmarks.scaling", "--as-workers", f"{first}:{amount}:{block_seconds}"]
        environment = {**os.environ, "QE_DATABASE_URL": url, "QE_REDIS_URL": servers.redis, "OMP_NUM_THREADS": "1"}
        children.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=environment, text=True,
            )
        )  # fmt: skip
    filled = _filled(direct, count)
    broker = redis.Redis.from_url(servers.redis)
    watched: dict[str, int] = {"connections": 0, "active": 0}
    over = threading.Event()
    watching = threading.Thread(target=_watch, args=(servers, watched, over))
    watching.start()
    before = _counters(direct, broker)
    asyncio.run(replicas(settings, jobs_a_second=jobs_a_second, seconds=seconds, times=times))
    after = _counters(direct, broker)
    over.set()
    watching.join()
    for child in children:
        said, _ = child.communicate("", timeout=60)
        times.add(json.loads(said or '{"took": {}, "errors": {"a process of workers died": 1}}'))
    lasted = after["at"] - before["at"]
    rates = {name: (after[name] - before[name]) / lasted for name in before if name != "at"}
    direct.close()
    what = {"workers": count, "block_seconds": block_seconds, "asked": jobs_a_second}
    return {**what, **watched, **rates, "filled": filled, "times": times}


def _stock(connection: psycopg.Connection[Any], jobs: int) -> None:
    """So many wait when it begins."""
    spec = {"model": {"id": MODEL}, "calibration": {"dataset": DATASET}, "scheme": "W4A6"}
    connection.execute(
        "INSERT INTO jobs (id, tenant, spec, model_id, method, scheme) SELECT id, 'default', %s, %s, 'qe', 'W4A6'"
        " FROM unnest(%s::text[]) AS id",
        (ledger.Jsonb(spec), MODEL, [new_id("job") for _ in range(jobs)]),
    )


def _filled(connection: psycopg.Connection[Any], count: int) -> float:
    """Seconds from the first claim until nearly all workers hold a job; infinite when it takes too long."""
    began: float | None = None
    deadline = time.perf_counter() + FILL_SECONDS
    while time.perf_counter() < deadline:
        row = connection.execute("SELECT count(*) FROM jobs WHERE lease_until IS NOT NULL").fetchone()
        assert row is not None
        if row[0] and began is None:
            began = time.perf_counter()
        if began is not None and row[0] >= NEARLY * count:
            return time.perf_counter() - began
        time.sleep(0.1)
    return float("inf")


def _watch(servers: Servers, watched: dict[str, int], over: threading.Event) -> None:
    with psycopg.connect(servers.database, autocommit=True) as connection:
        while not over.wait(0.2):
            row = connection.execute(
                "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
            assert row is not None
            watched["connections"] = max(watched["connections"], row[0])
            watched["active"] = max(watched["active"], row[1])


def _counters(connection: psycopg.Connection[Any], broker: redis.Redis) -> dict[str, float]:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM attempts),"
        " (SELECT count(*) FROM jobs WHERE status = 'succeeded'), (SELECT count(*) FROM jobs),"
        " (SELECT sum(xact_commit) FROM pg_stat_database), (SELECT sum(sessions) FROM pg_stat_database)"
    ).fetchone()
    assert row is not None
    events, attempts, ended, made, transactions, sessions = map(float, row)
    info: dict[str, Any] = broker.info()  # type: ignore[assignment]
    return {
        "at": time.perf_counter(),
        "events": events,
        "claims": attempts,
        "ended": ended,
        "made": made,
        "transactions": transactions,
        "sessions": sessions,
        "broker_commands": float(info["total_commands_processed"]),
        "broker_bytes": float(info["total_net_input_bytes"]) + float(info["total_net_output_bytes"]),
        "postgres_cores": _seconds_of(psutil.Process(connection.info.backend_pid).ppid()),
        "api_cores": sum(psutil.Process().cpu_times()[:2]),
        "machine_cores": sum(psutil.cpu_times()[:3]),
    }


def _seconds_of(postmaster: int) -> float:
    """Of processor time, of PostgreSQL, with sessions that have ended."""
    server = psutil.Process(postmaster)
    total = sum(server.cpu_times()[:4])
    for child in server.children():
        with contextlib.suppress(psutil.Error):
            total += sum(child.cpu_times()[:2])
    return float(total)


@contextlib.contextmanager
def pooled_by(program: Path | None, postgres: Postgres, database: str) -> Iterator[str | None]:
    """A URL through pgbouncer in transaction mode, with fifty sessions of the server; None without a program."""
    if program is None:
        yield None
        return
    directory, port = Path(tempfile.mkdtemp(prefix="qe-pgbouncer-")), free_port()
    directory.chmod(0o777)
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\nqe = host={postgres.directory} dbname={name} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = transaction\n"
        f"max_client_conn = 5000\ndefault_pool_size = 50\nunix_socket_dir = {directory}\n"
        f"logfile = {directory}/log\npidfile = {directory}/pid\n"
    )
    command = [str(program), str(directory / "pgbouncer.ini")]
    process = start(command, environment=os.environ, log=directory / "out", user=postgres.directory.owner())
    try:
        time.sleep(1)
        if process.poll() is not None:
            raise SystemExit(f"{program} did not start: {(directory / 'out').read_text().strip()}")
        yield f"postgresql://postgres@127.0.0.1:{port}/qe?pgbouncer=true"
    finally:
        process.terminate()
        process.wait()


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("workers", lambda f: str(f["workers"])),
        ("block, s", lambda f: f"{f['block_seconds']:g}"),
        ("jobs/s asked, ended", lambda f: f"{f['asked']:.1f}, {f['ended']:.1f}"),
        ("workers busy after, s", lambda f: f"{f['filled']:.1f}"),
        ("events/s", lambda f: f"{f['events']:.0f}"),
        ("transactions/s", lambda f: f"{f['transactions']:.0f}"),
        ("new sessions/s", lambda f: f"{f['sessions']:.1f}"),
        (
            "PostgreSQL, ms of a core for an event",
            lambda f: f"{1000 * f['postgres_cores'] / max(f['events'], 0.1):.1f}",
        ),
        ("connections, busy", lambda f: f"{f['connections']}, {f['active']}"),
        ("claim p50, p99, ms", lambda f: _ms(f["times"], "claim")),
        ("block p50, p99, ms", lambda f: _ms(f["times"], "block")),
        ("POST p50, p99, ms", lambda f: _ms(f["times"], "POST /v1/jobs")),
        ("list p50, p99, ms", lambda f: _ms(f["times"], "GET /v1/jobs")),
        ("broker commands/s, kB/s", lambda f: f"{f['broker_commands']:.0f}, {f['broker_bytes'] / 1e3:.0f}"),
        ("cores: PostgreSQL, API, all", lambda f: _cores(f)),
        ("failed", lambda f: ", ".join(f"{n} × {what}" for what, n in f["times"].errors.items()) or "–"),
    ]
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(show(each) for _, show in columns) + " |" for each in found)]


def _ms(times: Times, what: str) -> str:
    return f"{1000 * times.quantile(what, 0.5):.0f}, {1000 * times.quantile(what, 0.99):.0f}"


def _cores(found: dict[str, Any]) -> str:
    return f"{found['postgres_cores']:.2f}, {found['api_cores']:.2f}, {found['machine_cores']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--steps", nargs="+", default=STEPS)
    parser.add_argument("--pgbouncer", type=Path, help="the program; each step is then run through it as well")
    parser.add_argument("--as-workers", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.as_workers:
        first, count, block_seconds = chosen.as_workers.split(":")
        workers(Settings(), f"sim-{first}", int(count), float(block_seconds))
        return
    lines: list[str] = []
    with (
        running_postgres(max_connections=2000) as postgres,
        postgres.database(template=TEMPLATE) as database,
        running_redis() as broker,
        pooled_by(chosen.pgbouncer, postgres, database) as pooled,
    ):
        ways = {"PostgreSQL itself": None, **({"Through pgbouncer, transaction mode": pooled} if pooled else {})}
        for title, url in ways.items():
            found = []
            for each in chosen.steps:
                count, block_seconds = each.split(":")
                servers = Servers(postgres, database, broker, url)
                found.append(
                    step(servers, count=int(count), block_seconds=float(block_seconds), seconds=chosen.seconds)
                )
                print(table(found)[-1], flush=True)
            lines += ["", f"## {title}", "", *table(found)]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    head = ["# Two hundred workers, ten API replicas", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    head += [f"{os.cpu_count()} cores for all of it, load of the machine at the end {load}."]
    RESULTS.write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
