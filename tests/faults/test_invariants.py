"""The checker is checked: a healthy ledger has no violation, and each kind of damage is found."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.faults.invariants import Evidence, Violation, check
from tests.faults.process_table import Overlap, Running
from tests.worker.conftest import Workshop, workshop  # noqa: F401 -- a fixture
from worker.ledger.connection import Connection
from worker.supervisor.supervisor import work


def run_three(workshop: Workshop) -> list[str]:  # noqa: F811
    """Two like jobs, one killed on the way, and one that fails."""
    dataset = workshop.add_dataset()
    jobs = [workshop.add_job(dataset=dataset)]
    work(workshop.context())
    workshop.direct("crash-2")
    jobs.append(workshop.add_job(dataset=dataset))
    work(workshop.context())
    jobs.append(workshop.add_job(dataset="ds_absent"))
    work(workshop.context())
    assert [workshop.job(job_id)["status"] for job_id in jobs] == ["succeeded", "succeeded", "failed"]
    return jobs


def found(workshop: Workshop, connection: Connection, **evidence: Any) -> list[Violation]:  # noqa: F811
    work_directory = workshop.settings.work_directory
    return check(connection, workshop.storage, evidence=Evidence(**evidence), work=work_directory)


DAMAGE = {
    "a job that waits for ever": (
        "I1",
        "INSERT INTO jobs (id, tenant, spec, model_id, method, scheme)"
        " SELECT 'job_0', tenant, spec, model_id, method, scheme FROM jobs WHERE id = %s",
    ),
    "a second terminal event": (
        "I3",
        "INSERT INTO events (job_id, seq, type) SELECT id, event_seq + 1, 'job.failed' FROM jobs WHERE id = %s",
    ),
    "a second success": ("I3", "UPDATE attempts SET outcome = 'succeeded' WHERE attempt = 1 AND job_id = %s"),
    "an attempt without an end": ("I3", "UPDATE attempts SET ended_at = NULL WHERE job_id = %s"),
    "a webhook message of no event": (
        "I3",
        "WITH w AS (INSERT INTO webhooks (id, tenant, url, event_types, secret, status)"
        " SELECT 'wh_1', tenant, 'https://x', '{job.failed}', '', 'enabled' FROM jobs WHERE id = %s RETURNING id)"
        " INSERT INTO webhook_deliveries (id, webhook_id, tenant, message_id, event_type, payload)"
        " SELECT 'whd_1', id, 't', 'evt_1', 'job.failed', '{}' FROM w",
    ),
    "a layer of a fenced attempt": ("I4", "UPDATE layers SET created_at = 'infinity' WHERE block = 1 AND job_id = %s"),
    "a missing layer": ("I4", "DELETE FROM layers WHERE block = 1 AND job_id = %s"),
    "other bytes than the like job's": (
        "I5",
        "UPDATE artifacts SET sha256 = 'ff' WHERE name = 'model.safetensors' AND job_id = %s",
    ),
    "a gap in the events": ("I6", "DELETE FROM events WHERE seq = 3 AND job_id = %s"),
    "an object that is not there": ("I7", "UPDATE artifacts SET key = 'jobs/nothing' WHERE job_id = %s"),
    "two jobs of one key": ("I9", "UPDATE jobs SET labels = jsonb_build_object('key', 'k') WHERE %s <> ''"),
}


def test_a_healthy_ledger_has_no_violation_and_each_damage_is_found(workshop: Workshop) -> None:  # noqa: F811
    jobs = run_three(workshop)
    with workshop.connect() as connection:
        assert found(workshop, connection, accepted=jobs, answers={"key": [jobs[0], jobs[0]]}) == []
        for name, (invariant, damage) in DAMAGE.items():
            with connection.transaction() as transaction:
                connection.execute(damage.encode(), (jobs[1],))
                violations = found(workshop, connection)
                assert invariant in {violation.invariant for violation in violations}, name
                raise psycopg.Rollback(transaction)
        assert found(workshop, connection, accepted=jobs) == []
        model = connection.execute("SELECT key FROM artifacts WHERE name LIKE 'model%'").fetchall()[0]
        workshop.storage.local_path(model["key"]).write_bytes(b"?")
        (workshop.settings.work_directory / jobs[1] / "a7").mkdir(parents=True)
        nobodys = workshop.storage.root / f"jobs/{jobs[1]}/a9"
        nobodys.mkdir(parents=True)
        (nobodys / "model").write_text("of an attempt that never was")
        assert [violation.invariant for violation in found(workshop, connection)] == ["I7", "I10"]


def test_what_only_bystanders_know_is_told(workshop: Workshop) -> None:  # noqa: F811
    one, two = Running(1, "job_1", 1), Running(2, "job_1", 2)
    with workshop.connect() as connection:
        violations = found(
            workshop,
            connection,
            accepted=["job_lost"],
            answers={"key": ["job_a", "job_b"]},
            overlaps=[Overlap(one, two)],
            orphans=["process 3 (sleep)"],
        )
    assert [violation.invariant for violation in violations] == ["I1", "I2", "I8", "I9"]
    assert str(violations[1]) == "I2: job_1 was computed by attempts 1 and 2 (processes 1 and 2)."
