"""The whole service as processes of its own, to be killed: PostgreSQL, Redis, API, Celery workers, keeper.

    with running_cluster(workers=2) as cluster:
        job_id = cluster.submit()
        cluster.kill("supervisor")
        cluster.revive()
        cluster.wait_ended([job_id])
        assert cluster.violations() == []

Leases are seconds short. Every process dies with the test process, whatever ends it. Start parts from one thread that
lives as long as the cluster: the kernel's parent-death signal follows the thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from core.contract.ids import new_id
from core.ledger.states import FINISHED
from core.settings import Settings
from core.storage import LocalStorage
from tests.faults.invariants import Evidence, Violation, check
from tests.faults.process_table import Running, Witness, ancestors, orphans, runners, state
from tests.services import ROOT, wait_until
from worker import process
from worker.embedded.parts import Part
from worker.embedded.servers import (
    EmbeddedPostgres,
    EmbeddedRedis,
    ServerFailed,
    embedded_postgres,
    embedded_redis,
    free_port,
)
from worker.ledger.connection import Connection, connect

KEY = "qe_bootstrap_key_of_the_faults_0123456789"
TENANT = "default"
VICTIMS = ("runner", "supervisor", "worker", "keeper", "api")
"""``worker`` is the Celery main process, ``supervisor`` the child of its pool that holds the job."""
SHORT = {
    "lease": 3.0,
    "beat": 0.25,
    "self_kill": 2.0,
    "grace": 0.5,
    "ring_again": 1.0,
    "keeper_interval": 0.1,
    # A fault that hits three times before the first block is the injector's doing, not the job's.
    "barren_attempts": 1000,
    "retry_delay": 0.0,
    "sick_after": 0,
}
START_SECONDS = 90.0


@dataclass
class Cluster:
    """Running parts by name: ``postgres redis api keeper worker-1 worker-2 ...``, and what clients were told."""

    directory: Path
    settings: Settings
    storage: LocalStorage
    postgres: EmbeddedPostgres
    redis: EmbeddedRedis
    environment: dict[str, str]
    parts: dict[str, Part] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    answers: dict[str, set[str]] = field(default_factory=dict)
    witness: Witness = field(init=False)

    def __post_init__(self) -> None:
        self.witness = Witness(self.directory)

    # What it is made of

    @property
    def stage(self) -> Path:
        """Directs the stand-in runners."""
        return self.directory / "stage"

    @property
    def crash_points(self) -> Path:
        """Directs the crash points of every process."""
        return self.directory / "crash_points"

    @property
    def log(self) -> Path:
        return self.directory / "home" / "logs"

    def connect(self) -> Connection:
        return connect(self.postgres.url)

    def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        with self.connect() as connection:
            return connection.execute(query.encode(), arguments).fetchall()

    # Clients

    def client(self, *, timeout: float = 10.0) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.settings.port}",
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=timeout,
        )

    def submit(self, *, key: str | None = None, seconds: float = 90.0, **spec: Any) -> str:
        """Create a job through the API as a client does that means it: the same key, again and again, until answered.

        Returns the job's id. Safe from any thread.
        """
        key = key or uuid.uuid4().hex
        body = {
            "model": {"id": "local/small"},
            "calibration": {"dataset": "ds_rows"},
            "scheme": "W4A6",
            "labels": {"key": key},
            **spec,
        }
        deadline = time.monotonic() + seconds
        with self.client() as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
                    if answer.status_code == 201:
                        job_id = str(answer.json()["id"])
                        self.accepted.add(job_id)
                        self.answers.setdefault(key, set()).add(job_id)
                        return job_id
                    if answer.status_code < 500 and answer.status_code not in (409, 429):
                        raise AssertionError(f"{answer.status_code}: {answer.text}")
                assert time.monotonic() < deadline, f"no answer to the creation of a job within {seconds:g} s"
                time.sleep(0.1)

    def job(self, job_id: str) -> dict[str, Any]:
        return self.rows("SELECT * FROM jobs WHERE id = %s", job_id)[0]

    def unfinished(self, jobs: Collection[str] | None = None) -> list[dict[str, Any]]:
        """``id status attempt`` of jobs that have not ended; of all, or of ``jobs``."""
        return self.rows(
            "SELECT id, status, attempt FROM jobs WHERE status <> ALL(%s) AND (%s::text[] IS NULL OR id = ANY(%s))",
            [status.value for status in FINISHED],
            None if jobs is None else list(jobs),
            None if jobs is None else list(jobs),
        )

    def wait_ended(self, jobs: Collection[str] | None = None, *, seconds: float = 120.0) -> None:
        """Until ``jobs``, or all, have ended. What a database that is away says is not heard."""

        def ended() -> bool:
            with contextlib.suppress(psycopg.OperationalError):
                return not self.unfinished(jobs)
            return False

        deadline = time.monotonic() + seconds
        while not ended():
            if time.monotonic() > deadline:
                raise AssertionError(f"not ended within {seconds:g} s: {self.unfinished(jobs)[:10]}; logs: {self.log}")
            time.sleep(0.1)

    # Faults

    def start(self, name: str) -> None:
        """Start a part that does not run, and go on."""
        part = self.parts[name]
        part.child = part.start()

    def wait_ready(self, *names: str) -> None:
        """Until each part serves."""
        for name in names:
            child = self.parts[name].child
            assert child is not None
            if name == "postgres":
                self.postgres.wait(child)
            elif name == "redis":
                self.redis.wait(child)
            elif name == "api":
                wait_until(self._answers, seconds=START_SECONDS, what=f"the API, whose log is {self.log / 'api.log'},")
            elif name.startswith("keeper"):  # of several one has it
                wait_until(
                    lambda: self.rows("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"),
                    seconds=START_SECONDS,
                    what="the keeper's lock",
                )
            else:
                since = psutil.Process(child.pid).create_time()
                wait_until(
                    lambda name=name, since=since: self.rows(
                        "SELECT 1 FROM workers WHERE id = %s AND seen_at > to_timestamp(%s)", f"{name}@faults", since
                    ),
                    seconds=START_SECONDS,
                    what=f"{name}, whose log is {self.log / f'{name}.log'},",
                )

    def dead(self) -> list[str]:
        return [name for name, part in self.parts.items() if not part.running()]

    def revive(self, *, ready: bool = False) -> list[str]:
        """Start again whatever died, servers first; returns the names. ``ready``: wait until they serve."""
        dead = self.dead()
        for name in dead:
            child = self.parts[name].child
            if child is not None:
                process.reap(child)
            if name == "postgres":
                self._revive_postgres()
            else:
                self.start(name)
        if ready:
            self.wait_ready(*dead)
        return dead

    def victims(self, kind: str) -> list[int]:
        """Process ids of ``runner supervisor worker keeper api postgres redis`` alive; busy ones first."""
        if kind not in ("worker", "supervisor"):
            return self._victims(kind)
        busy = {pid for running in self.runners() for pid in (running.pid, *ancestors(running.pid))}
        return sorted(self._victims(kind), key=lambda pid: pid not in busy)

    def _victims(self, kind: str) -> list[int]:
        if kind == "runner":
            return [running.pid for running in self.runners()]
        if kind == "supervisor":
            children = [child for main in self.victims("worker") for child in _children(main)]
            return [child for child in children if "job.json" not in " ".join(_command(child))]
        return [
            part.child.pid
            for name, part in self.parts.items()
            if name.partition("-")[0] == kind and part.child is not None and part.running()
        ]

    def runners(self) -> list[Running]:
        return runners(self.directory)

    def send(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """No error when it is gone already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill(self, kind: str) -> int | None:
        """SIGKILL the first of ``kind``; its process id, or None when none lives."""
        pids = self.victims(kind)
        if not pids:
            return None
        self.send(pids[0])
        return pids[0]

    @contextlib.contextmanager
    def paced(self, seconds: float) -> Iterator[None]:
        """Inside, a block of the stand-in takes ``seconds``."""
        (self.stage / "pace").write_text(str(seconds))
        try:
            yield
        finally:
            (self.stage / "pace").unlink()

    def wait_gone(self, pid: int) -> None:
        """Until a killed process has ended. A part whose first thread is dead may still be leaving its other ones, and
        would not be started again."""
        wait_until(
            lambda: (
                state(pid) in "ZX"
                and pid not in [part.child.pid for part in self.parts.values() if part.child and part.running()]
            ),
            what=f"the end of process {pid}",
        )

    def stop_server(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End ``postgres`` or ``redis``: SIGKILL, or PostgreSQL's SIGINT (fast) and SIGQUIT (immediate)."""
        child = self.parts[name].child
        assert child is not None
        process.send(child, number)
        process.reap(child)

    def cut_off(self, user: str) -> None:
        """No session of the database user ``user`` any more, and no new one: a worker behind a cut cable."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {user} NOLOGIN".encode())
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (user,))

    def reconnect(self, user: str) -> None:
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {user} LOGIN".encode())

    # Judgement

    def evidence(self) -> Evidence:
        return Evidence(
            accepted=frozenset(self.accepted),
            answers=self.answers,
            overlaps=self.witness.overlaps,
            orphans=orphans(self.directory),
        )

    def violations(self, *, reclaim: bool = False) -> list[Violation]:
        """Every violation so far. ``reclaim``: stop the workers, and look at what a sweep leaves on the disk (I10)."""
        evidence = self.evidence()
        if reclaim:
            for name in [name for name in self.parts if name.partition("-")[0] in ("worker", "keeper", "api")]:
                self.stop(name)
        with self.connect() as connection:
            work = self.settings.work_directory if reclaim else None
            return check(connection, self.storage, evidence=evidence, work=work)

    # Life

    def add_part(self, name: str, command: list[str], **environment: str) -> Part:
        """Start ``command`` as the part ``name`` with settings of its own on top."""
        own = {**self.environment, **environment}
        part = Part(name, lambda: process.start(command, environment=own, log=self.log / f"{name}.log", directory=ROOT))
        self.parts[name] = part
        part.child = part.start()
        return part

    def add_worker(self, **environment: str) -> str:
        """One more Celery worker; returns the name of the part."""
        name = f"worker-{sum(part.startswith('worker-') for part in self.parts) + 1}"
        command = [sys.executable, "-m", "celery", "--app", "tests.faults.celery_app:app", "worker"]
        command += ["--queues", "qe.jobs", "--pool", "prefork", "--concurrency", "1", "--hostname", f"{name}@faults"]
        self.add_part(name, [*command, "--without-gossip", "--without-mingle", "--loglevel", "INFO"], **environment)
        return name

    def add_user(self, user: str) -> str:
        """A database user that can be cut off; the URL to log in as it."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {user} SUPERUSER LOGIN".encode())
        return self.postgres.url.replace("//postgres@", f"//{user}@")

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM, *, seconds: float = 30.0) -> None:
        """End one part, politely first."""
        child = self.parts[name].child
        if child is None:
            return
        process.send(child, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        process.kill_group(child)
        process.reap(child)

    def close(self) -> None:
        """Kill everything; nothing is left."""
        for name, part in reversed(self.parts.items()):
            if part.child is not None:
                if name == "postgres":
                    self.stop(name, signal.SIGINT)
                process.kill_group(part.child)
                process.reap(part.child)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return client.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def _revive_postgres(self) -> None:
        """Backends of a killed postmaster keep its shared memory for a moment, and the next one refuses to start."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.start("postgres")
            child = self.parts["postgres"].child
            assert child is not None
            try:
                self.postgres.wait(child)
                return
            except ServerFailed:
                process.reap(child)
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


@contextlib.contextmanager
def running_cluster(
    *, workers: int = 2, runner: str = "standin", crash_points: bool = True, **settings: Any
) -> Iterator[Cluster]:
    """A cluster that serves. ``runner``: ``standin`` or ``real``; ``settings`` go over the short leases."""
    directory = Path(tempfile.mkdtemp(prefix="qe-faults-"))
    # PostgreSQL does not run as root, and its user must come through to its data.
    directory.chmod(0o755)
    for folder in ("home/logs", "stage", "models/small", "crash_points"):
        (directory / folder).mkdir(parents=True)
    postgres, redis = embedded_postgres(directory / "home"), embedded_redis(directory / "home")
    chosen = Settings(
        home=directory / "home",
        port=free_port(),
        database_url=postgres.url,
        redis_url=redis.url,
        model_root=directory / "models",
        api_key=KEY,
        **{**SHORT, **settings},
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("QE_", "FAULTS_"))}
    environment = {
        **inherited,
        **{f"QE_{name.upper()}": str(value) for name, value in chosen.model_dump(exclude_none=True).items()},
        "FAULTS_STAGE": str(directory / "stage"),
        "FAULTS_RUNNER": runner,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if crash_points:
        environment["QE_CRASH_POINTS"] = str(directory / "crash_points")
    cluster = Cluster(
        directory, chosen, LocalStorage(directory / "home" / "storage"), postgres, redis, environment
    )  # fmt: skip
    try:
        for name, server in (("postgres", postgres), ("redis", redis)):
            cluster.parts[name] = Part(name, server.start)
            cluster.start(name)
        cluster.wait_ready("postgres", "redis")
        postgres.migrate()
        _add_rows(cluster)
        with cluster.witness:
            api = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--port", str(chosen.port)]
            cluster.add_part("api", [*api, "--timeout-graceful-shutdown", "3"])
            cluster.add_part("keeper", [sys.executable, "-m", "worker.keeper"])
            for _ in range(workers):
                cluster.add_worker()
            cluster.wait_ready(*(name for name in cluster.parts if name not in ("postgres", "redis")))
            yield cluster
    finally:
        cluster.close()
        if os.environ.get("FAULTS_KEEP") is None:
            shutil.rmtree(directory, ignore_errors=True)


def _add_rows(cluster: Cluster) -> None:
    """The dataset ``ds_rows``: what the stand-in hashes."""
    add_dataset(cluster, "ds_rows", b'{"messages": [{"role": "user", "content": "Which colour?"}]}\n')


def add_dataset(cluster: Cluster, dataset_id: str, content: bytes) -> str:
    """Store calibration rows as a finished upload."""
    source = cluster.directory / f"{new_id('rows')}.jsonl"
    source.write_bytes(content)
    cluster.storage.put(f"datasets/{dataset_id}", source)
    source.unlink()
    with cluster.connect() as connection:
        connection.execute(
            "INSERT INTO datasets (id, tenant, format, status, bytes, sha256, key, rows, images)"
            " VALUES (%s, %s, 'jsonl', 'ready', %s, %s, %s, 1, 0)",
            (dataset_id, TENANT, len(content), hashlib.sha256(content).hexdigest(), f"datasets/{dataset_id}"),
        )
    return dataset_id


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children() if state(child.pid) not in "ZX"]
    except psutil.Error:
        return []


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []
