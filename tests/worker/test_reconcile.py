"""The ledger held against the storage: what is missing, what is left over, and what is left alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.contract.ids import new_id
from core.storage import StorageUnavailable
from tests.services import ROOT
from tests.worker.conftest import Workshop
from worker.keeper.reconcile import Findings, reconcile
from worker.supervisor.supervisor import work

OLD_DATASET = "datasets/ds_00000000000170008000000000000000/rows.jsonl"
"""By its uuid7, made in 1970."""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.keeper.reconcile.ROWS", 2)


@pytest.fixture
def done(workshop: Workshop) -> str:
    """A finished job, long enough ago that nobody can be busy with its files."""
    job_id = workshop.add_job()
    work(workshop.context())
    with workshop.connect() as connection:
        connection.execute("UPDATE attempts SET ended_at = clock_timestamp() - interval '1 h'")
    return job_id


def look(workshop: Workshop, **asked: bool | float) -> Findings:
    with workshop.connect() as connection:
        return reconcile(connection, workshop.storage, **asked)  # type: ignore[arg-type]


def store(workshop: Workshop, key: str) -> str:
    source = workshop.stage / "left-over"
    source.write_text("x")
    workshop.storage.put(key, source)
    return key


def test_a_service_at_rest_is_whole(workshop: Workshop, done: str) -> None:
    findings = look(workshop, verify=True)
    assert (findings.broken, findings.orphans, findings.unknown) == ([], [], [])
    assert findings.rows == findings.objects > 0


def test_missing_cut_and_damaged_artifacts_are_named(workshop: Workshop, done: str) -> None:
    rows = workshop.rows("SELECT name, key FROM artifacts WHERE job_id = %s ORDER BY name", done)
    paths = {row["name"]: workshop.storage.local_path(row["key"]) for row in rows}
    weights, report = paths["model.safetensors"], paths["quality_report.json"]
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(b"?" * len(content))
    report.unlink()
    assert [(each.what, each.owner, each.name, each.why) for each in look(workshop).broken] == [
        ("artifact", done, "quality_report.json", "is missing")
    ]
    findings = look(workshop, verify=True)
    assert [each.why for each in findings.broken] == ["has another SHA-256", "is missing"]
    assert not findings.whole
    weights.write_bytes(content[:-1])
    assert f"has {len(content) - 1} bytes instead of {len(content)}" in [each.why for each in look(workshop).broken]


def test_a_dataset_without_its_bytes_is_marked_and_new_jobs_are_refused_it(workshop: Workshop, done: str) -> None:
    key = workshop.rows("SELECT key FROM datasets")[0]["key"]
    workshop.storage.delete(key)
    assert look(workshop).marked == 0
    assert workshop.rows("SELECT status FROM datasets") == [{"status": "ready"}]
    assert look(workshop, mark=True).marked == 1
    row = workshop.rows("SELECT status, key, problems FROM datasets")[0]
    assert (row["status"], row["key"]) == ("invalid", None)
    assert row["problems"][0]["message"] == "the stored file is missing: upload the rows again"
    assert look(workshop).whole


def test_left_over_objects_are_deleted_only_when_asked_and_only_when_nobody_is_busy(
    workshop: Workshop, done: str
) -> None:
    running = workshop.add_job()
    workshop.claim()
    left = [store(workshop, key) for key in (OLD_DATASET, f"jobs/{done}/a7/model.safetensors", f"readiness/{'0' * 32}")]
    kept = [
        store(workshop, key)
        for key in (
            f"datasets/{new_id('ds')}/rows.jsonl",  # an upload whose row comes in a moment
            f"jobs/{running}/a1/model.safetensors",
            f"jobs/{running}/blocks/00",
            f"jobs/{new_id('job')}/a1/x",
        )
    ]
    strange = store(workshop, "elsewhere/x")
    findings = look(workshop)
    assert (sorted(findings.orphans), findings.unknown, findings.deleted) == (sorted(left), [strange], 0)
    findings = look(workshop, delete=True)
    assert findings.deleted == 3
    remaining = set(workshop.storage.keys(""))
    assert {*kept, strange} <= remaining
    assert not remaining & set(left)
    assert look(workshop).whole


def test_what_a_killed_process_was_about_to_store_is_dropped_when_it_is_old_enough(workshop: Workshop) -> None:
    folder = workshop.storage.root / "datasets"
    folder.mkdir()
    (folder / ".half.part").write_text("half")
    assert look(workshop, delete=True).deleted == 0  # younger than a day: somebody may be storing it
    assert look(workshop, delete=True, older_than_hours=0).deleted == 1
    assert list(folder.iterdir()) == []


def test_the_command_says_what_it_found_and_fails_when_bytes_are_missing(workshop: Workshop, done: str) -> None:
    def run(*options: str) -> tuple[int, str]:
        settings = {
            "QE_DATABASE_URL": workshop.settings.database_url or "",
            "QE_HOME": str(workshop.settings.resolved_home),
        }
        made = subprocess.run(
            [sys.executable, "-m", "worker.keeper.reconcile", *options],
            env={**os.environ, **settings},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return made.returncode, made.stdout

    code, text = run("--json")
    assert (code, json.loads(text)["broken"]) == (0, [])
    key = workshop.rows("SELECT key FROM artifacts WHERE name = 'model.safetensors'")[0]["key"]
    Path(workshop.storage.local_path(key)).unlink()
    code, text = run()
    assert code == 1
    assert f"broken   artifact 'model.safetensors' of {done}: {key} is missing" in text


def test_a_dataset_that_cannot_be_read_now_is_not_given_up(
    workshop: Workshop, done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row without its key is a row whose bytes are swept."""

    def size(key: str) -> int:
        raise StorageUnavailable(errno.EIO, "object store: slow down")

    monkeypatch.setattr(workshop.storage, "size", size)
    with workshop.connect() as connection:
        findings = reconcile(connection, workshop.storage, mark=True)
    assert findings.broken
    assert findings.marked == 0
    assert [row["status"] for row in workshop.rows("SELECT status FROM datasets")] == ["ready"]
