"""The migrations make the ledger that the code expects, and the database itself refuses what the ledger forbids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory

from core.ledger.states import LEASED, TRANSITIONS, JobStatus
from tests.services import alembic_config, migrate


@pytest.fixture
def ledger(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def insert_job(ledger: psycopg.Connection, status: JobStatus) -> str:
    job_id = f"job_{status}"
    lease = "clock_timestamp()" if status in LEASED else "NULL"
    ledger.execute(
        f"""INSERT INTO jobs (id, tenant, spec, model_id, method, scheme, status, lease_until, attempt)
            VALUES (%s, 'default', '{{}}', 'a/b', 'qe', 'W4A6', %s, {lease}, 3)""".encode(),
        (job_id, status.value),
    )
    return job_id


def test_the_models_and_the_migrations_agree(database_url: str) -> None:
    command.check(alembic_config(database_url))


def test_the_migrations_go_up_from_nothing_and_back(empty_database_url: str) -> None:
    migrate(empty_database_url)
    command.downgrade(alembic_config(empty_database_url), "base")
    migrate(empty_database_url)
    command.check(alembic_config(empty_database_url))


def test_there_is_one_line_of_migrations(empty_database_url: str) -> None:
    assert len(ScriptDirectory.from_config(alembic_config(empty_database_url)).get_heads()) == 1


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(JobStatus, 2)))
def test_the_database_allows_exactly_the_listed_transitions(
    ledger: psycopg.Connection, old: JobStatus, new: JobStatus
) -> None:
    job_id = insert_job(ledger, old)
    lease = "clock_timestamp()" if new in LEASED else "NULL"
    move = f"UPDATE jobs SET status = %s, lease_until = {lease} WHERE id = %s".encode()
    if new in TRANSITIONS[old]:
        ledger.execute(move, (new.value, job_id))
    else:
        with pytest.raises(psycopg.errors.CheckViolation) as refused:
            ledger.execute(move, (new.value, job_id))
        assert refused.value.diag.constraint_name == "legal_transition"


def test_a_fencing_token_never_goes_back(ledger: psycopg.Connection) -> None:
    job_id = insert_job(ledger, JobStatus.QUEUED)
    ledger.execute("UPDATE jobs SET attempt = 4 WHERE id = %s", (job_id,))
    with pytest.raises(psycopg.errors.CheckViolation, match="fencing token"):
        ledger.execute("UPDATE jobs SET attempt = 3 WHERE id = %s", (job_id,))


def test_the_spec_of_a_job_is_fixed(ledger: psycopg.Connection) -> None:
    job_id = insert_job(ledger, JobStatus.QUEUED)
    with pytest.raises(psycopg.errors.CheckViolation, match="never changes"):
        ledger.execute("""UPDATE jobs SET spec = '{"scheme": "W2A4"}' WHERE id = %s""", (job_id,))


def test_a_lease_and_a_held_job_come_together(ledger: psycopg.Connection) -> None:
    job_id = insert_job(ledger, JobStatus.QUEUED)
    with pytest.raises(psycopg.errors.CheckViolation, match="leased"):
        ledger.execute("UPDATE jobs SET status = 'running' WHERE id = %s", (job_id,))
