"""What was deleted or kept long enough leaves ledger and storage, and nothing that somebody still needs does."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from tests.worker.conftest import TENANT, Workshop
from worker.keeper import removal, sweep
from worker.machine import hub_copies
from worker.supervisor.supervisor import work


def delete(workshop: Workshop, *job_ids: str) -> None:
    with workshop.connect() as connection:
        connection.execute("SELECT delete_jobs(%s, %s)", (TENANT, list(job_ids)))


def removed(workshop: Workshop, *, dead_seconds: float = 0) -> int:
    with workshop.connect() as connection:
        removal.remove_artifacts_of_deleted(connection, workshop.storage)
        return removal.remove_deleted_jobs(connection, workshop.storage, dead_seconds=dead_seconds)


def retired(workshop: Workshop, **settings: Any) -> int:
    with workshop.connect() as connection:
        return removal.retire(connection, workshop.settings.model_copy(update=settings))


def age(workshop: Workshop, table: str, column: str, days: int) -> None:
    with workshop.connect() as connection:
        connection.execute(f"UPDATE {table} SET {column} = {column} - make_interval(days => {days})".encode())


@pytest.fixture
def done(workshop: Workshop) -> str:
    job_id = workshop.add_job()
    work(workshop.context())
    return job_id


def test_a_deleted_job_leaves_nothing(workshop: Workshop, done: str) -> None:
    delete(workshop, done)
    assert removed(workshop, dead_seconds=600) == 0  # its last attempt may still have a process that writes
    assert removed(workshop) == 1
    assert removed(workshop) == 0
    assert list(workshop.storage.keys(f"jobs/{done}")) == []
    for table in ("jobs", "attempts", "events", "layers", "artifacts"):
        assert workshop.rows(f"SELECT 1 AS one FROM {table}") == [], table


@pytest.mark.parametrize("relation", ["forked_from", "comparison_id"])
def test_what_an_unfinished_fork_or_comparison_may_take_over_stays_until_it_has_ended(
    workshop: Workshop, done: str, relation: str
) -> None:
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET comparison_id = 'cmp_1'")
    child = workshop.add_job(dataset=workshop.job(done)["spec"]["calibration"]["dataset"])
    with workshop.connect() as connection:
        name = done if relation == "forked_from" else "cmp_1"
        connection.execute(f"UPDATE jobs SET {relation} = %s WHERE id = %s".encode(), (name, child))
    delete(workshop, done)
    assert removed(workshop) == 0
    kept = list(workshop.storage.keys(f"jobs/{done}"))
    assert kept
    assert all(key.startswith(f"jobs/{done}/blocks/") for key in kept)
    work(workshop.context())
    assert workshop.job(child)["status"] == "succeeded"
    if relation == "forked_from":
        assert workshop.attempts(child)[0]["resumed_from_block"] == 4
    assert removed(workshop) == 1
    assert list(workshop.storage.keys(f"jobs/{done}")) == []


def test_objects_of_deleted_artifacts_go(workshop: Workshop, done: str) -> None:
    with workshop.connect() as connection:
        connection.execute("DELETE FROM artifacts")
        connection.execute("INSERT INTO storage_removals VALUES (%s, %s)", (f"jobs/{done}/a1", TENANT))
        assert list(workshop.storage.keys(f"jobs/{done}/a1"))
        assert removal.remove_objects(connection, workshop.storage) == 1
    assert list(workshop.storage.keys(f"jobs/{done}/a1")) == []


def test_old_jobs_go_but_for_what_an_alias_serves(workshop: Workshop) -> None:
    jobs = {name: workshop.add_job() for name in ("old", "served", "replaced", "rejoined")}
    work(workshop.context())
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET alias = 'a/b' WHERE id = ANY(%s)", ([jobs["served"], jobs["replaced"]],))
        connection.execute(
            "UPDATE jobs SET finished_at = finished_at - interval '1 h' WHERE id = %s", (jobs["replaced"],)
        )
    waiting = workshop.add_job()
    age(workshop, "jobs", "finished_at", 31)
    assert retired(workshop) == 0
    assert retired(workshop, keep_jobs_days=60) == 0
    with workshop.connect() as connection:
        connection.execute("INSERT INTO retention (tenant, jobs_days) VALUES (%s, 30)", (TENANT,))
    assert retired(workshop, keep_jobs_days=60) == 3
    left = workshop.rows("SELECT id FROM jobs WHERE deleted_at IS NULL")
    assert {row["id"] for row in left} == {jobs["served"], waiting}


def test_old_events_and_blocks_go_once_and_the_last_event_stays(workshop: Workshop, done: str) -> None:
    number = len(workshop.events(done))
    with workshop.connect() as connection:
        sweep.drop_block_files(connection, workshop.storage, resumable_hours=0)
    days = {"keep_events_days": 7, "keep_layers_days": 7}
    assert retired(workshop, **days) == 0
    age(workshop, "jobs", "finished_at", 8)
    assert retired(workshop, **days) == number - 1 + 4
    assert [event["type"] for event in workshop.events(done)] == ["job.succeeded"]
    assert retired(workshop, **days) == 0
    later = workshop.add_job()
    work(workshop.context())
    age(workshop, "jobs", "finished_at", 0)
    with workshop.connect() as connection:
        connection.execute(
            "UPDATE jobs SET finished_at = finished_at - interval '7 days 1 hour' WHERE id = %s", (later,)
        )
    assert retired(workshop, **days) > 0
    assert len(workshop.events(later)) == 1


def test_old_audit_entries_go(workshop: Workshop) -> None:
    workshop.add_job()
    with workshop.connect() as connection:
        for number, days in enumerate((10, 40)):
            connection.execute(
                "INSERT INTO audit (id, tenant, key_id, action, object_id, request_id, created_at)"
                " VALUES (%s, %s, 'k', 'job.created', 'o', 'r', clock_timestamp() - make_interval(days => %s))",
                (f"aud_{number}", TENANT, days),
            )
    assert retired(workshop, keep_audit_days=30) == 1
    assert workshop.rows("SELECT id FROM audit") == [{"id": "aud_0"}]


def test_copies_of_models_that_no_job_has_used_for_a_month_go(workshop: Workshop) -> None:
    home = workshop.settings.resolved_home
    old, used, other = (home / "models" / "a--b" / name for name in ("0" * 40, "1" * 40, "notes"))
    for directory in (old, used, other):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
    month = time.time() - 31 * 24 * 3600
    for directory in (old, other):
        os.utime(directory, (month, month))
    assert hub_copies.drop_unused_copies(home, days=30) == 1
    assert sorted(path.name for path in old.parent.iterdir()) == ["1" * 40, "notes"]
