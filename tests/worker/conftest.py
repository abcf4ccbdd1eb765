"""A workshop: a ledger, storage and model of its own, supervisors on it, and a stage that directs their runners."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from core.contract.ids import new_id
from core.contract.spec import JobSpec
from core.settings import Settings
from core.storage import LocalStorage, Storage
from tests.services import wait_until
from worker.ledger import attempts as ledger
from worker.ledger import claims
from worker.ledger.connection import Connection, connect
from worker.machine.context import WorkerContext
from worker.machine.health import Health
from worker.supervisor.supervisor import work

STANDIN = Path(__file__).with_name("standin.py")
TENANT = "tenant-a"


@dataclass
class Workshop:
    """Everything around one ledger."""

    settings: Settings
    storage: Storage
    stage: Path
    notified: list[str] = field(default_factory=list)

    def connect(self) -> Connection:
        return connect(self.settings.database_url or "")

    def add_dataset(self) -> str:
        content = b'{"messages": []}\n'
        dataset_id = new_id("ds")
        source = self.stage / "rows.jsonl"
        source.write_bytes(content)
        self.storage.put(f"datasets/{dataset_id}", source)
        with self.connect() as connection:
            connection.execute(
                "INSERT INTO datasets (id, tenant, format, status, bytes, sha256, key, rows, images)"
                " VALUES (%s, %s, 'jsonl', 'ready', %s, %s, %s, 1, 0)",
                (dataset_id, TENANT, len(content), hashlib.sha256(content).hexdigest(), f"datasets/{dataset_id}"),
            )
        return dataset_id

    def add_job(self, *, model: str = "local/tiny", dataset: str | None = None, priority: int = 0, **spec: Any) -> str:
        """Queue a job as the API does."""
        dataset = dataset or self.add_dataset()
        body = {"model": {"id": model}, "calibration": {"dataset": dataset}, "scheme": "W4A6", **spec}
        checked = JobSpec.model_validate(body)
        job_id = new_id("job")
        with self.connect() as connection, connection.transaction():
            connection.execute(
                "INSERT INTO jobs (id, tenant, spec, model_id, method, scheme, priority)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (
                    job_id,
                    TENANT,
                    ledger.Jsonb(checked.model_dump(mode="json")),
                    model,
                    checked.method,
                    checked.scheme,
                    priority,
                ),
            )
            ledger.append_event(connection, job_id, ledger.EventType.CREATED, {})
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        return self.rows("SELECT * FROM jobs WHERE id = %s", job_id)[0]

    def events(self, job_id: str) -> list[dict[str, Any]]:
        return self.rows("SELECT seq, type, data FROM events WHERE job_id = %s ORDER BY seq", job_id)

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM attempts WHERE job_id = %s ORDER BY attempt", job_id)

    def artifact(self, job_id: str, name: str = "model.safetensors") -> bytes:
        row = self.rows("SELECT key FROM artifacts WHERE job_id = %s AND name = %s", job_id, name)[0]
        with self.storage.open(row["key"]) as reader:
            return reader.read()

    def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        with self.connect() as connection:
            return connection.execute(query.encode(), arguments).fetchall()

    def claim(self, worker: str = "worker-1") -> claims.Claim:
        with self.connect() as connection:
            claim = claims.claim(connection, worker=worker, lease=self.settings.lease)
        assert claim is not None
        return claim

    def context(
        self, worker: str = "worker-1", *, draining: threading.Event | None = None, **settings: Any
    ) -> WorkerContext:
        return WorkerContext(
            settings=self.settings.model_copy(update=settings),
            storage=self.storage,
            worker=worker,
            draining=(draining or threading.Event()).is_set,
            notify=self.notified.append,
            runner=(sys.executable, str(STANDIN), str(self.stage)),
            health=Health(probe=lambda kind, device: 1),
        )

    @contextlib.contextmanager
    def working(self, context: WorkerContext) -> Iterator[threading.Thread]:
        """A supervisor at work in a thread; on the way out it has ended."""

        def take_jobs() -> None:
            with contextlib.suppress(psycopg.OperationalError):  # the ledger may be what a test takes away
                work(context)

        thread = threading.Thread(target=take_jobs)
        thread.start()
        try:
            yield thread
        finally:
            for held in self.stage.glob("hold-*"):
                held.unlink()
            thread.join(60)
            assert not thread.is_alive()

    def direct(self, *signs: str) -> None:
        """Put signs on the stage, for example ``hold-2``."""
        for sign in signs:
            (self.stage / sign).touch()

    def release(self, *signs: str) -> None:
        for sign in signs:
            (self.stage / sign).unlink()

    def wait_for(self, sign: str) -> None:
        wait_until((self.stage / sign).exists, what=f"the sign {sign}")

    def runner_pid(self) -> int:
        return int((self.stage / "pid").read_text())

    def kill_runner(self) -> None:
        os.kill(self.runner_pid(), signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def workshop(tmp_path: Path, database_url: str) -> Workshop:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "stage").mkdir()
    settings = Settings(
        home=tmp_path / "home",
        database_url=database_url,
        redis_url="redis://127.0.0.1:1/0",
        model_root=tmp_path / "models",
        lease=30,
        beat=0.2,
        self_kill=20,
        retry_delay=0,
    )
    return Workshop(settings, LocalStorage(tmp_path / "home" / "storage"), tmp_path / "stage")
