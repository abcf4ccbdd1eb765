"""The ledger as a state machine: clients, workers, zombies and the keeper in any order, against a plain dictionary.

The model knows who holds which job and nothing of SQL. A hold is kept for ever, so that every later use of an old one
is a paused worker that wakes: the ledger must refuse it and change nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.access.auth import Actor
from app.db import pipeline as direct
from app.db.engine import create_engine, create_sessions, tenant_session
from app.jobs import service
from app.jobs.creation import create_job
from app.web.problems import Problem
from core.contract.errors import FailureCode
from core.contract.spec import JobSpec
from core.ledger.states import FINISHED, AttemptOutcome
from core.settings import Settings
from core.storage import LocalStorage
from tests.faults.invariants import check
from tests.faults.safeguards_off import drop_the_fence
from tests.worker.conftest import Workshop, workshop  # noqa: F401 -- a fixture
from worker.keeper import loop as keeper
from worker.keeper import waiting
from worker.ledger import attempts as ledger
from worker.ledger import blocks, claims
from worker.ledger.attempts import AttemptRef, NotHeld
from worker.ledger.connection import connect

TENANT = "default"
LEASE = 60.0
BUDGET = 3
BLOCKS = 3
SPEC = JobSpec.model_validate({"model": {"id": "a/m"}, "calibration": {"dataset": "a/d"}, "scheme": "W4A6"})
SETTINGS = Settings()
ACTOR = Actor(tenant=TENANT, key_id="key_test", request_id="test")
CONTENT = b"checkpoint"
WORKERS = st.sampled_from(["anna", "bert", "cleo"])
EXAMPLES = int(os.environ.get("FAULTS_EXAMPLES", "12"))


@dataclass
class Model:
    """What is true of a job."""

    status: str = "queued"
    attempt: int = 0
    expired: bool = False
    blocks: int = 0
    """Blocks in the ledger."""
    new: int = 0
    """Blocks of the attempt that holds it."""
    attempts_without_progress: int = 0
    ends: int = 0

    def holds(self, ref: AttemptRef, *statuses: str) -> bool:
        return ref.attempt == self.attempt and self.status in (statuses or ("running",))

    def end(self, status: str) -> None:
        self.status, self.ends, self.expired = status, self.ends + 1, False

    def die(self) -> str:
        """An attempt ends without a word."""
        if self.status == "cancelling":
            self.end("cancelled")
            return self.status
        self.attempts_without_progress = 0 if self.new else self.attempts_without_progress + 1
        if self.attempts_without_progress >= BUDGET:
            self.end("failed")
        else:
            self.status, self.expired = "queued", False
        return self.status


class LedgerMachine(RuleBasedStateMachine):
    """Set ``url`` and ``storage`` before running it."""

    url: str
    storage: LocalStorage

    def __init__(self) -> None:
        super().__init__()
        self.connection = connect(self.url)
        self.connection.execute("TRUNCATE jobs CASCADE")
        self.loop = asyncio.Runner()
        self.engine = create_engine(self.url)
        self.sessions = create_sessions(self.engine)
        self.model: dict[str, Model] = {}
        """In the order of creation, which is the order of the queue."""

    def teardown(self) -> None:
        found = check(self.connection, self.storage)
        assert [str(violation) for violation in found if violation.invariant != "I1"] == []
        self.loop.run(self.engine.dispose())
        self.loop.close()
        self.connection.close()

    jobs = Bundle("jobs")
    holds = Bundle("holds")

    # Clients

    @rule(target=jobs)
    def create(self) -> str:
        async def made() -> Any:
            async with direct.transaction(self.sessions, TENANT) as transaction:
                return await create_job(transaction, actor=ACTOR, spec=SPEC, settings=SETTINGS)

        job = self.loop.run(made())
        self.model[job.id] = Model()
        return str(job.id)

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.model[job_id]
        if job.status in ("succeeded", "failed"):
            with pytest.raises(Problem):
                self._as_client(lambda session: service.cancel_job(session, tenant=TENANT, job_id=job_id))
            return
        self._as_client(lambda session: service.cancel_job(session, tenant=TENANT, job_id=job_id))
        if job.status == "queued":
            job.end("cancelled")
        elif job.status == "running":
            job.status = "cancelling"

    @rule(job_id=jobs)
    def retry(self, job_id: str) -> None:
        job = self.model[job_id]
        if job.status not in ("failed", "cancelled"):
            with pytest.raises(Problem):
                self._as_client(
                    lambda session: service.retry_job(session, tenant=TENANT, job_id=job_id, settings=SETTINGS)
                )
            return
        self._as_client(lambda session: service.retry_job(session, tenant=TENANT, job_id=job_id, settings=SETTINGS))
        job.status, job.attempts_without_progress = "queued", 0

    # Workers

    @precondition(lambda self: any(job.status == "queued" for job in self.model.values()))
    @rule(target=holds, worker=WORKERS)
    def claim(self, worker: str) -> AttemptRef:
        job_id, job = next((job_id, job) for job_id, job in self.model.items() if job.status == "queued")
        claim = claims.claim(self.connection, worker=worker, lease=LEASE)
        job.status, job.new, job.attempt = "running", 0, job.attempt + 1
        assert claim is not None
        assert claim.ref == AttemptRef(job_id, job.attempt)
        return claim.ref

    @precondition(lambda self: not any(job.status == "queued" for job in self.model.values()))
    @rule(worker=WORKERS)
    def find_nothing(self, worker: str) -> None:
        assert claims.claim(self.connection, worker=worker, lease=LEASE) is None

    @rule(ref=holds)
    def beat(self, ref: AttemptRef) -> None:
        with self._fenced(ref, "running", "cancelling") as job:
            assert ledger.extend_lease(self.connection, ref, lease=LEASE) == job.status
            job.expired = False

    @rule(ref=holds)
    def finish_a_block(self, ref: AttemptRef) -> None:
        block = self.model[ref.job_id].blocks
        if block >= BLOCKS:
            return
        file = {"name": f"blocks/{block}", "bytes": 1, "sha256": "00", "key": f"jobs/{ref.job_id}/blocks/{block}"}
        with self._fenced(ref) as job:
            blocks.record_block(
                self.connection, ref, block=block, blocks=BLOCKS, seconds=1, report={}, files=[file], superseded=[],
                event={"block": block},
            )  # fmt: skip
            job.blocks, job.new = job.blocks + 1, job.new + 1

    @rule(ref=holds)
    def succeed(self, ref: AttemptRef) -> None:
        if self.model[ref.job_id].blocks < BLOCKS:
            return
        artifact = {
            "name": "model.safetensors",
            "key": "result",
            "bytes": len(CONTENT),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "media_type": "x",
        }
        with self._fenced(ref) as job:
            ledger.succeed(self.connection, ref, summary={}, artifacts=[artifact])
            job.end("succeeded")

    @rule(ref=holds)
    def fail(self, ref: AttemptRef) -> None:
        with self._fenced(ref) as job:
            ledger.fail(self.connection, ref, code=FailureCode.INTERNAL, message="x")
            job.end("failed")

    @rule(ref=holds)
    def obey_the_cancel(self, ref: AttemptRef) -> None:
        with self._fenced(ref, "cancelling") as job:
            ledger.cancel(self.connection, ref)
            job.end("cancelled")

    @rule(ref=holds)
    def hand_back(self, ref: AttemptRef) -> None:
        with self._fenced(ref) as job:
            ledger.hand_back(self.connection, ref, reason="x")
            job.status, job.expired = "queued", False

    @rule(ref=holds)
    def lose_the_runner(self, ref: AttemptRef) -> None:
        with self._fenced(ref, "running", "cancelling") as job:
            status = ledger.give_up_attempt(
                self.connection, ref, outcome=AttemptOutcome.RUNNER_DIED, reason="x", budget=BUDGET
            )
            assert status == job.die()

    # Time and the keeper

    @rule(job_id=jobs)
    def expire(self, job_id: str) -> None:
        self.connection.execute(
            "UPDATE jobs SET lease_until = clock_timestamp() - interval '1 h'"
            " WHERE id = %s AND lease_until IS NOT NULL",
            (job_id,),
        )
        self.model[job_id].expired = self.model[job_id].status in ("running", "cancelling")

    @rule()
    def reap(self) -> None:
        notified: list[str] = []
        reaped = keeper.reap(self.connection, notified.append, grace=30, budget=BUDGET)
        expected = {job_id: job.die() for job_id, job in self.model.items() if job.expired}
        assert reaped == expected
        assert sorted(notified) == sorted(job_id for job_id, status in expected.items() if status == "queued")

    @rule(job_id=jobs)
    def wait_for_too_long(self, job_id: str) -> None:
        self.connection.execute(
            "UPDATE jobs SET max_wait_s = 60, queued_at = queued_at - interval '1 h',"
            " run_after = run_after - interval '1 h' WHERE id = %s",
            (job_id,),
        )
        waits = self.model[job_id].status == "queued"
        assert waiting.end_waiting(self.connection) == ([job_id] if waits else [])
        if waits:
            self.model[job_id].end("failed")

    # What must hold after every step

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        rows = self.connection.execute(
            "SELECT id, status, attempt, (SELECT count(*) FROM layers WHERE job_id = jobs.id) AS blocks,"
            " (SELECT count(*) FROM events WHERE job_id = jobs.id AND type = ANY(%s)) AS ends FROM jobs",
            ([f"job.{status.value}" for status in FINISHED],),
        ).fetchall()
        said = {row["id"]: (row["status"], row["attempt"], row["blocks"], row["ends"]) for row in rows}
        true = {job_id: (job.status, job.attempt, job.blocks, job.ends) for job_id, job in self.model.items()}
        assert said == true

    @contextmanager
    def _fenced(self, ref: AttemptRef, *statuses: str) -> Iterator[Model]:
        """The body's write is accepted exactly when the hold is good; otherwise it must raise NotHeld."""
        job = self.model[ref.job_id]
        if job.holds(ref, *statuses):
            yield job
            return
        try:
            yield job
        except NotHeld:
            return
        raise AssertionError(f"{ref} was accepted, and the job is {job}")

    def _as_client(self, ask: Callable[[Any], Any]) -> Any:
        async def transaction() -> Any:
            async with tenant_session(self.sessions, lambda: TENANT, actor=lambda: ACTOR) as session, session.begin():
                return await ask(session)

        return self.loop.run(transaction())


@pytest.fixture
def machine(database_url: str, tmp_path: Path) -> type[LedgerMachine]:
    storage = LocalStorage(tmp_path / "storage")
    (tmp_path / "result").write_bytes(CONTENT)
    storage.put("result", tmp_path / "result")
    return type("Machine", (LedgerMachine,), {"url": database_url, "storage": storage})


def run(machine: type[LedgerMachine], examples: int) -> None:
    """Derandomised: the same histories each time, until the rules or FAULTS_EXAMPLES change."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    run_state_machine_as_test(machine, settings=chosen)


@pytest.mark.slow
def test_whatever_clients_workers_and_keeper_do_the_ledger_says_what_happened(machine: type[LedgerMachine]) -> None:
    run(machine, EXAMPLES)


@pytest.fixture
def unfenced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lock", "extend_lease", "read_status"):
        monkeypatch.setattr(ledger, name, getattr(ledger, name))  # put back afterwards
    drop_the_fence()


@pytest.mark.usefixtures("unfenced")
def test_without_the_fence_the_same_histories_go_wrong(machine: type[LedgerMachine]) -> None:
    with pytest.raises(AssertionError, match="Failing test case"):
        run(machine, EXAMPLES)


@pytest.mark.usefixtures("unfenced")
def test_without_the_fence_the_checker_finds_what_a_woken_worker_wrote(workshop: Workshop) -> None:  # noqa: F811
    workshop.add_job()
    old = workshop.claim("slow").ref
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 h'")
        keeper.reap(connection, workshop.notified.append, grace=30, budget=3)
        workshop.claim("quick")
        blocks.record_block(
            connection, old, block=0, blocks=1, seconds=1, report={}, files=[], superseded=[], event={"block": 0}
        )
        assert "I4" in {violation.invariant for violation in check(connection, workshop.storage)}
        ledger.succeed(connection, old, summary={}, artifacts=[])
        assert "I3" in {violation.invariant for violation in check(connection, workshop.storage)}
