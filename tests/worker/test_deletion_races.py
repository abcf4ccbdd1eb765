"""Every row that a write refers to, against its deletion in the same moment: the write goes through without it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from core.contract.errors import FailureCode
from core.contract.events import EventType
from core.ledger.outbox import ANNOUNCED
from core.ledger.states import AttemptOutcome
from tests.services import wait_until
from tests.worker.conftest import TENANT, Workshop
from tests.worker.test_webhooks import TAKEN, add_webhook, fail_a_job
from worker.ledger import attempts as ledger
from worker.ledger import claims
from worker.ledger.attempts import AttemptRef
from worker.ledger.connection import Connection
from worker.pushes import queue as pushes
from worker.supervisor.fenced_writer import REFUSALS, FencedWriter
from worker.supervisor.lease import hold_lease
from worker.webhooks import queue as webhooks

Write = Callable[[Connection, AttemptRef], Any]
ENDS: dict[str, Write] = {
    "succeed": lambda c, h: ledger.succeed(c, h, summary={}, artifacts=[]),
    "fail": lambda c, h: ledger.fail(c, h, code=FailureCode.INTERNAL, message="x"),
    "hand back": lambda c, h: ledger.hand_back(c, h, reason="x"),
    "give up": lambda c, h: ledger.give_up_attempt(c, h, outcome=AttemptOutcome.RUNNER_DIED, reason="x", budget=1),
}
CHECKED = {
    ("pushes", "jobs"),
    ("webhook_deliveries", "webhooks"),
    ("webhook_attempts", "webhook_deliveries"),
    # A write of these first locks the job's row, and so does the deletion of a job.
    *((table, "jobs") for table in ("artifacts", "attempts", "events", "job_labels", "layers")),
}


def tell_of_everything(workshop: Workshop) -> None:
    add_webhook(workshop)
    with workshop.connect() as connection:
        connection.execute("UPDATE webhooks SET event_types = %s", ([kind.value for kind in ANNOUNCED],))


def while_deleting(workshop: Workshop, deletion: str, write: Callable[[Connection], Any]) -> Any:
    """The answer of ``write``, which began before ``deletion`` was committed and waits for it."""
    answers: list[Any] = []

    def attempt() -> None:
        with workshop.connect() as writing:
            try:
                answers.append(write(writing))
            except psycopg.Error as error:
                answers.append(error)

    with ExitStack() as stack:
        deleting = stack.enter_context(workshop.connect())
        thread = threading.Thread(target=attempt)
        with deleting.transaction():
            assert deleting.execute(deletion.encode()).rowcount == 1
            thread.start()
            wait_until(
                lambda: (
                    answers
                    or workshop.rows(
                        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    )
                ),
                what="the write that waits",
            )
        thread.join(30)
    (answer,) = answers
    return answer


@pytest.mark.parametrize("name", ENDS)
def test_a_job_ends_as_it_would_when_its_webhook_is_deleted_meanwhile(workshop: Workshop, name: str) -> None:
    tell_of_everything(workshop)
    workshop.add_job()
    ref = workshop.claim().ref
    status = while_deleting(workshop, "DELETE FROM webhooks", lambda connection: ENDS[name](connection, ref))
    assert not isinstance(status, psycopg.Error), status
    assert workshop.job(ref.job_id)["status"] == status
    assert workshop.rows("SELECT id FROM webhook_deliveries") == []


def test_a_claim_stands_when_a_webhook_is_deleted_meanwhile(workshop: Workshop) -> None:
    tell_of_everything(workshop)
    job_id = workshop.add_job()
    claim = while_deleting(
        workshop, "DELETE FROM webhooks", lambda connection: claims.claim(connection, worker="w", lease=30)
    )
    assert isinstance(claim, claims.Claim), claim
    assert claim.ref.job_id == job_id


def test_an_answer_of_an_endpoint_is_recorded_when_its_delivery_is_forgotten_meanwhile(workshop: Workshop) -> None:
    add_webhook(workshop)
    fail_a_job(workshop)
    with workshop.connect() as connection:
        due = webhooks.take_due(connection, busy=(), limit=1)[0]
    problem = while_deleting(
        workshop,
        f"DELETE FROM webhook_deliveries WHERE id = '{due.id}'",
        lambda connection: webhooks.record(connection, due, TAKEN),
    )
    assert problem is None
    assert workshop.rows("SELECT FROM webhook_attempts") == []


def test_the_end_of_a_push_is_no_error_when_its_job_is_removed_meanwhile(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    workshop.rows(
        "INSERT INTO pushes (id, tenant, job_id, destination, status, due_at)"
        " VALUES ('push_1', %s, %s, 'hub:a/b', 'queued', clock_timestamp()) RETURNING id",
        TENANT,
        job_id,
    )
    with workshop.connect() as connection:
        due = pushes.take_due(connection)
    assert due is not None
    problem = while_deleting(
        workshop, f"DELETE FROM jobs WHERE id = '{job_id}'", lambda connection: pushes.succeed(connection, due, {})
    )
    assert problem is None
    assert workshop.rows("SELECT FROM pushes") == []


def test_every_reference_is_one_of_these(workshop: Workshop) -> None:
    found = workshop.rows("SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint"
                          " WHERE contype = 'f'")  # fmt: skip
    assert {(row["conrelid"], row["confrelid"]) for row in found} == CHECKED


@pytest.mark.parametrize(("times", "goes_through"), [(1, True), (REFUSALS - 1, True), (REFUSALS, False)])
def test_a_broken_constraint_is_tried_again_before_it_is_a_verdict(
    workshop: Workshop, times: int, goes_through: bool
) -> None:
    workshop.add_job()
    ref = workshop.claim().ref
    refusals = iter(range(times))

    def phase(connection: Connection, ref: AttemptRef) -> str:
        if next(refusals, None) is not None:
            connection.execute("INSERT INTO events (job_id, seq, type) VALUES ('job_absent', 1, 'x')")
        ledger.append_event(connection, ref.job_id, EventType.WARNING, {"message": "x"})
        return "written"

    with (
        hold_lease(workshop.settings, ref, seconds_left=60) as lease,
        FencedWriter(workshop.settings.database_url or "", ref, lease) as writer,
    ):
        if goes_through:
            assert writer.write(phase) == "written"
        else:
            with pytest.raises(psycopg.IntegrityError):
                writer.write(phase)
