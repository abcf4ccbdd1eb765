"""Only ``core.ledger.transitions`` changes a job's status."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATEMENTS = re.compile(r"\b(UPDATE|INSERT\s+INTO)\s+jobs\b")
STATUS = re.compile(r"\bUPDATE\s+jobs\s+SET\b(?:(?!\bWHERE\b).)*\bstatus\s*=|\bINSERT\s+INTO\s+jobs\b", re.DOTALL)
TRANSITIONS = "core/ledger/transitions.py"
OTHER_COLUMNS = {"core/ledger/outbox.py", "worker/keeper/waiting.py"}


def writes(source: str) -> Iterator[str]:
    """``status`` for code that writes a job's status, ``column`` for a statement that writes its row otherwise."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)) if STATEMENTS.search(text):
                yield "status" if STATUS.search(text) else "column"
            case ast.Call(func=ast.Name(id="Job")) if "core.ledger.tables import" in source:
                yield "status"
            case ast.Call(func=ast.Name(id="insert" | "update"), args=[ast.Name(id="Job"), *_]):
                yield "status"
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=name), attr="status")], value=value):
                if "job" in name or "JobStatus" in ast.unparse(value):
                    yield "status"


@pytest.mark.parametrize(
    "source",
    [
        "job.status = 'queued'",
        "row.status = JobStatus.FAILED",
        "from core.ledger.tables import Job\nsession.add(Job(id='job_1'))",
        "await session.execute(update(Job).values(status='failed'))",
        "connection.execute(\"UPDATE jobs SET worker = NULL, status = 'queued' WHERE id = %s\")",
        "STATEMENT = f'INSERT INTO jobs (id) VALUES ({x})'",
    ],
)
def test_a_write_of_the_status_is_seen(source: str) -> None:
    assert list(writes(source)) == ["status"]


def test_only_the_transitions_write_a_jobs_status() -> None:
    files = [path for room in ("app", "core", "worker") for path in (ROOT / room).rglob("*.py")]

    found = {str(path.relative_to(ROOT)): set(writes(path.read_text())) for path in files}

    assert {path for path, kinds in found.items() if "status" in kinds} == {TRANSITIONS}
    assert {path for path, kinds in found.items() if kinds} == {TRANSITIONS} | OTHER_COLUMNS
