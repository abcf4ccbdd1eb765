"""A worker takes only jobs whose spec it understands; what no living worker understands waits and says so."""

from __future__ import annotations

import psycopg
import pytest

from core.contract.versions import UNDERSTOOD
from tests.worker.conftest import Workshop
from worker.keeper.waiting import explain_waiting
from worker.ledger import claims, workers
from worker.supervisor.supervisor import pass_on, work

OLD_CLAIM = """UPDATE jobs SET status = 'running', attempt = attempt + 1, worker = 'old', phase = 'preparing',
    lease_until = clock_timestamp() + interval '120 s' WHERE id = (SELECT id FROM jobs WHERE status = 'queued'
    AND run_after <= clock_timestamp() ORDER BY priority DESC, created_at LIMIT 1 FOR UPDATE SKIP LOCKED)"""
"""As release 0.1.0 sends it: it does not look at the version."""


def newer_job(workshop: Workshop) -> str:
    job_id = workshop.add_job()
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET spec_version = %s WHERE id = %s", (UNDERSTOOD + 1, job_id))
    return job_id


def lives(workshop: Workshop, name: str, understood: int) -> None:
    with workshop.connect() as connection:
        workers.record_worker(connection, worker=name, host="h", device="cpu")
        connection.execute("UPDATE workers SET spec_version = %s WHERE id = %s", (understood, name))


def explained(workshop: Workshop) -> int:
    with workshop.connect() as connection:
        return explain_waiting(connection, alive=30)


def test_an_old_worker_leaves_newer_jobs_alone_and_goes_on_with_the_others(workshop: Workshop) -> None:
    newer, other = newer_job(workshop), workshop.add_job()
    assert work(workshop.context()) == 1
    assert [workshop.job(job_id)["status"] for job_id in (newer, other)] == ["queued", "succeeded"]
    with workshop.connect() as connection:
        claim = claims.claim(connection, worker="new", lease=30, understood=UNDERSTOOD + 1)
    assert claim is not None
    assert claim.ref.job_id == newer


def test_the_ledger_refuses_the_claim_of_code_that_does_not_look(workshop: Workshop) -> None:
    old, newer = workshop.add_job(), newer_job(workshop)
    with workshop.connect() as connection:
        assert connection.execute(OLD_CLAIM).rowcount == 1
        with pytest.raises(psycopg.errors.CheckViolation, match="too old"):
            connection.execute(OLD_CLAIM)
    assert [workshop.job(job_id)["status"] for job_id in (old, newer)] == ["running", "queued"]


def test_a_job_that_no_living_worker_understands_says_what_it_waits_for_until_one_does(workshop: Workshop) -> None:
    newer, other = newer_job(workshop), workshop.add_job()
    assert explained(workshop) == 0  # that no worker lives at all is said once, of the service
    lives(workshop, "old", UNDERSTOOD)
    assert explained(workshop) == 1
    waiting = workshop.job(newer)["waiting"]
    assert waiting["code"] == "workers_too_old"
    assert f"version {UNDERSTOOD + 1} of the spec" in waiting["message"]
    assert workshop.job(other)["waiting"] is None
    assert explained(workshop) == 0
    lives(workshop, "new", UNDERSTOOD + 1)
    assert explained(workshop) == 1
    assert workshop.job(newer)["waiting"] is None


def test_a_spec_that_a_worker_does_not_understand_all_the_same_is_left_to_others(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    with workshop.connect() as connection:
        connection.execute("ALTER TABLE jobs DISABLE TRIGGER guard_job")
        connection.execute('UPDATE jobs SET spec = spec || \'{"colour": "red"}\'')
        connection.execute("ALTER TABLE jobs ENABLE TRIGGER guard_job")
    lives(workshop, "other", UNDERSTOOD)
    assert work(workshop.context()) == 1
    job = workshop.job(job_id)
    assert (job["status"], job["avoid"]) == ("queued", ["worker-1"])
    assert "does not understand colour" in workshop.attempts(job_id)[0]["error"]["message"]


def test_the_wake_up_of_a_job_for_others_is_passed_on_a_few_times(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.supervisor.supervisor.PASS_SECONDS", 0)
    newer = newer_job(workshop)
    message = newer
    for number in range(1, 6):
        pass_on(workshop.context(), message)
        message = workshop.notified[-1]
        assert message == f"{newer}+{number}"
    pass_on(workshop.context(), message)
    pass_on(workshop.context(), "worker-ready")
    assert len(workshop.notified) == 5
