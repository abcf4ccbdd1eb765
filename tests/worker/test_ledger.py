"""The ledger's rules, on a real PostgreSQL: who gets a job, and who may write about it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from core.contract.errors import FailureCode
from core.ledger.states import AttemptOutcome, JobStatus
from tests.worker.conftest import Workshop
from worker.ledger import attempts as ledger
from worker.ledger import blocks, claims
from worker.ledger.attempts import AttemptRef
from worker.ledger.connection import Connection

Write = Callable[[Connection, AttemptRef], Any]

BLOCK: dict[str, Any] = {
    "block": 0, "blocks": 2, "seconds": 1.0, "report": {}, "superseded": [], "event": {"block": 0},
    "files": [{"name": "blocks/0", "bytes": 1, "sha256": "00", "key": "k"}],
}  # fmt: skip
ARTIFACT = {"name": "config.json", "key": "k", "bytes": 1, "sha256": "00", "media_type": "application/json"}

WRITES: dict[str, Write] = {
    "phase": lambda c, h: ledger.set_phase(c, h, "fitting"),
    "progress": lambda c, h: ledger.set_progress(c, h, {"done": 1}),
    "warning": lambda c, h: ledger.add_warning(c, h, "careful"),
    "block": lambda c, h: blocks.record_block(c, h, **BLOCK),
    "resumed": lambda c, h: blocks.record_resumed(c, h, block=0, blocks=2),
    "success": lambda c, h: ledger.succeed(c, h, summary={}, artifacts=[ARTIFACT]),
    "failure": lambda c, h: ledger.fail(c, h, code=FailureCode.INTERNAL, message="x"),
    "hand back": lambda c, h: ledger.hand_back(c, h, reason="x"),
    "beat": lambda c, h: ledger.extend_lease(c, h, lease=30),
    "give up": lambda c, h: ledger.give_up_attempt(c, h, outcome=AttemptOutcome.RUNNER_DIED, reason="x", budget=3),
}


def state(workshop: Workshop) -> list[Any]:
    return [
        workshop.rows(f"SELECT * FROM {table} ORDER BY 1, 2")
        for table in ("jobs", "attempts", "events", "layers", "artifacts")
    ]


@pytest.mark.parametrize("name", WRITES)
def test_a_write_of_the_holder_is_accepted(workshop: Workshop, name: str) -> None:
    workshop.add_job()
    ref = workshop.claim().ref
    before = state(workshop)
    with workshop.connect() as connection:
        WRITES[name](connection, ref)
    assert state(workshop) != before


@pytest.mark.parametrize("name", WRITES)
def test_a_write_of_an_earlier_attempt_changes_nothing(workshop: Workshop, name: str) -> None:
    workshop.add_job()
    stale = workshop.claim("slow").ref
    with workshop.connect() as connection:
        ledger.hand_back(connection, stale, reason="reaped")
        assert workshop.claim("quick").ref == AttemptRef(stale.job_id, stale.attempt + 1)
        before = state(workshop)
        with pytest.raises(ledger.NotHeld):
            WRITES[name](connection, stale)
    assert state(workshop) == before


@pytest.mark.parametrize("name", [name for name in WRITES if name not in ("beat", "give up")])
def test_a_job_that_is_being_cancelled_takes_nothing_but_its_end(workshop: Workshop, name: str) -> None:
    workshop.add_job()
    ref = workshop.claim().ref
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET status = 'cancelling'")
        before = state(workshop)
        with pytest.raises(ledger.NotHeld):
            WRITES[name](connection, ref)
        assert state(workshop) == before
        assert ledger.extend_lease(connection, ref, lease=30) == JobStatus.CANCELLING
        assert ledger.cancel(connection, ref) == JobStatus.CANCELLED


def test_nobody_cancels_a_job_that_nobody_asked_to_cancel(workshop: Workshop) -> None:
    workshop.add_job()
    ref = workshop.claim().ref
    with workshop.connect() as connection, pytest.raises(ledger.NotHeld):
        ledger.cancel(connection, ref)


def test_the_job_with_the_highest_priority_and_then_the_oldest_is_claimed_first(workshop: Workshop) -> None:
    first, second = workshop.add_job(), workshop.add_job()
    urgent = workshop.add_job(priority=5)
    assert [workshop.claim().ref.job_id for _ in range(3)] == [urgent, first, second]
    with workshop.connect() as connection:
        assert claims.claim(connection, worker="w", lease=30) is None


def test_a_job_that_shall_wait_is_not_claimed(workshop: Workshop) -> None:
    workshop.add_job()
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET run_after = clock_timestamp() + interval '1 h'")
        assert claims.claim(connection, worker="w", lease=30) is None


def test_many_workers_at_once_never_get_the_same_job(workshop: Workshop) -> None:
    jobs = {workshop.add_job() for _ in range(12)}
    start, got = threading.Barrier(6), []

    def take(number: int) -> None:
        with workshop.connect() as connection:
            start.wait()
            while (claim := claims.claim(connection, worker=f"w{number}", lease=30)) is not None:
                got.append(claim.ref.job_id)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(jobs)
    assert set(got) == jobs


def test_events_are_dense_although_many_write_at_once(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    ref = workshop.claim().ref

    def warn() -> None:
        with workshop.connect() as connection:
            for number in range(10):
                ledger.add_warning(connection, ref, f"{number}")

    threads = [threading.Thread(target=warn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seqs = [event["seq"] for event in workshop.events(job_id)]
    assert seqs == list(range(1, 44))


def test_artifacts_become_visible_with_the_end_or_not_at_all(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    ref = workshop.claim().ref
    with workshop.connect() as connection:
        with pytest.raises(psycopg.errors.NotNullViolation):
            ledger.succeed(connection, ref, summary={}, artifacts=[ARTIFACT, {**ARTIFACT, "name": "b", "key": None}])
        assert workshop.job(job_id)["status"] == "running"
        assert workshop.rows("SELECT * FROM artifacts") == []
        ledger.succeed(connection, ref, summary={"kl": 1.0}, artifacts=[ARTIFACT])
    assert [row["name"] for row in workshop.rows("SELECT * FROM artifacts")] == ["config.json"]


def test_a_new_block_renews_the_budget(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    give_up = {"outcome": AttemptOutcome.RUNNER_DIED, "reason": "killed", "budget": 3}
    with workshop.connect() as connection:
        for _ in range(2):
            assert ledger.give_up_attempt(connection, workshop.claim().ref, **give_up) == JobStatus.QUEUED
        ref = workshop.claim().ref
        blocks.record_block(connection, ref, **BLOCK)
        assert ledger.give_up_attempt(connection, ref, **give_up) == JobStatus.QUEUED
        assert workshop.job(job_id)["barren_attempts"] == 0
        for expected in (JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED):
            assert ledger.give_up_attempt(connection, workshop.claim().ref, **give_up) == expected
    assert workshop.job(job_id)["error"]["code"] == "no_progress"


def test_superseded_files_are_forgotten_and_named_for_deletion(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    ref = workshop.claim().ref

    def file(name: str, key: str) -> dict[str, Any]:
        return {"name": name, "bytes": 1, "sha256": key, "key": key}

    with workshop.connect() as connection:
        first = {**BLOCK, "files": [file("blocks/0", "a"), file("chain/0", "b")]}
        assert blocks.record_block(connection, ref, **first) == []
        second = {**BLOCK, "block": 1, "files": [file("chain/1", "c")], "superseded": ["chain/0"]}
        assert blocks.record_block(connection, ref, **second) == ["b"]
        assert [each["name"] for each in blocks.block_files(connection, job_id)] == ["blocks/0", "chain/1"]


def test_a_message_that_postgresql_cannot_store_is_cleaned(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    with workshop.connect() as connection:
        ledger.fail(connection, workshop.claim().ref, code=FailureCode.INTERNAL, message="a\x00b\nc" + "x" * 9999)
    message = workshop.job(job_id)["error"]["message"]
    assert message.startswith("ab c")
    assert len(message) == 2000


def test_the_thousandth_block_reads_no_more_of_the_ones_before_than_the_tenth(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    ref = workshop.claim().ref
    with workshop.connect() as connection:
        connection.execute(
            "INSERT INTO layers (job_id, block, attempt, seconds, report, files) SELECT %s, n, 1, 1, '{}',"
            " jsonb_build_array(jsonb_build_object('name', 'chain/' || n, 'bytes', 1, 'sha256', '0', 'key', 'k' || n))"
            " FROM generate_series(0, 999) AS n",
            (job_id,),
        )
        read: list[int] = []
        real = blocks._files_by_block

        def counted(*arguments: Any, **options: Any) -> dict[int, Any]:
            found = real(*arguments, **options)
            read.append(len(found))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "_files_by_block", counted)
            dropped = blocks.record_block(
                connection, ref, **{**BLOCK, "block": 1000, "blocks": 2000, "superseded": ["chain/998"]}
            )
            assert dropped == ["k998"]
            assert sum(read) <= 2 * blocks.RECENT
            # One of long ago is found all the same.
            assert blocks.record_block(
                connection, ref, **{**BLOCK, "block": 1001, "blocks": 2000, "superseded": ["chain/3"]}
            ) == ["k3"]
