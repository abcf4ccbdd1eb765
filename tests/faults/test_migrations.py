"""Migrations run while code of the first release serves: they only add, lose no row, and make nobody wait for long."""

from __future__ import annotations

import io
import itertools
import re
import threading
import time

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory

from tests.services import alembic_config, migrate, wait_until

REVISIONS = [
    each.revision
    for each in reversed(list(ScriptDirectory.from_config(alembic_config("postgresql://")).walk_revisions()))
]
TABLES = ["jobs", "attempts", "layers", "events", "artifacts", "datasets", "api_keys", "idempotency", "workers"]
OLD_CODE = (
    # What release 0.1.0 sends, statement by statement: create, claim, beat, block, end, upload, key, presence.
    """INSERT INTO jobs (id, tenant, name, labels, spec, model_id, method, scheme)
       VALUES ('job_{n}', 'default', NULL, '{{}}', '{{"n": {n}}}', 'a/b', 'qe', 'W4A6')""",
    "UPDATE jobs SET event_seq = event_seq + 1 WHERE id = 'job_{n}'",
    "INSERT INTO events (job_id, seq, type, data) VALUES ('job_{n}', 1, 'job.created', '{{}}')",
    """INSERT INTO idempotency (tenant, key, request_digest, status_code, response, location)
       VALUES ('default', 'key-{n}', '00', 201, '{{}}', '/v1/jobs/job_{n}')""",
    """INSERT INTO workers (id, host, device) VALUES ('w{n}', 'h', 'cpu')
       ON CONFLICT (id) DO UPDATE SET host = excluded.host, seen_at = clock_timestamp()""",
    """UPDATE jobs SET status = 'running', attempt = attempt + 1, worker = 'w{n}', phase = 'preparing',
       lease_until = clock_timestamp() + interval '120 s', started_at = clock_timestamp()
       WHERE id = (SELECT id FROM jobs WHERE status = 'queued' AND run_after <= clock_timestamp()
                   ORDER BY priority DESC, created_at LIMIT 1 FOR UPDATE SKIP LOCKED)""",
    "INSERT INTO attempts (job_id, attempt, worker, resumed_from_block) VALUES ('job_{n}', 1, 'w{n}', 0)",
    "UPDATE jobs SET lease_until = clock_timestamp() WHERE id = 'job_{n}' AND attempt = 1 AND status = 'running'",
    """INSERT INTO layers (job_id, block, attempt, seconds, report, files)
       VALUES ('job_{n}', 0, 1, 1.5, '{{}}', '[]')""",
    """INSERT INTO artifacts (job_id, name, attempt, key, bytes, sha256, media_type)
       VALUES ('job_{n}', 'model', 1, 'jobs/job_{n}/a1/model', 1, '00', 'text/plain')""",
    """UPDATE jobs SET status = 'succeeded', lease_until = NULL, phase = NULL, finished_at = clock_timestamp(),
       summary = '{{}}', verdict = NULL, error = NULL WHERE id = 'job_{n}'""",
    "UPDATE attempts SET ended_at = clock_timestamp(), outcome = 'succeeded', error = NULL WHERE job_id = 'job_{n}'",
    """INSERT INTO datasets (id, tenant, name, format, status, bytes, sha256, key, rows, images)
       VALUES ('ds_{n}', 'default', NULL, 'jsonl', 'ready', 1, '00', 'datasets/ds_{n}', 1, 0)""",
    """INSERT INTO api_keys (id, tenant, name, digest, scopes)
       VALUES ('key_{n}', 'default', 'k', 'digest-{n}', ARRAY['jobs:read'])""",
    "SELECT id, tenant, name, labels, spec, status, attempt, progress, error, event_seq FROM jobs WHERE id = 'job_{n}'",
)


def serve_as_the_first_release(connection: psycopg.Connection, n: int) -> None:
    for statement in OLD_CODE:
        done = connection.execute(statement.format(n=n).encode())
        assert done.rowcount == 1, statement


def counts(connection: psycopg.Connection) -> dict[str, int]:
    found = {}
    for table in TABLES:
        row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert row is not None
        found[table] = row[0]
    return found


def test_old_code_serves_at_every_revision_and_no_row_is_lost_on_the_way_up_and_down(empty_database_url: str) -> None:
    config = alembic_config(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        for number, revision in enumerate(REVISIONS):
            migrate(empty_database_url, revision)
            serve_as_the_first_release(connection, number)
            assert set(counts(connection).values()) == {number + 1}, revision
        command.check(config)
        for number, revision in enumerate(reversed(REVISIONS[:-1]), start=len(REVISIONS)):
            command.downgrade(config, revision)
            assert set(counts(connection).values()) == {number}, revision
            serve_as_the_first_release(connection, number)
        migrate(empty_database_url)
        command.check(config)
        assert set(counts(connection).values()) == {2 * len(REVISIONS) - 1}
    command.downgrade(config, "base")


def statements_of(revision: str, before: str) -> str:
    buffer = io.StringIO()
    config = alembic_config("postgresql://")
    config.output_buffer = buffer
    command.upgrade(config, f"{before}:{revision}", sql=True)
    return buffer.getvalue()


def breaking(sql: str) -> list[str]:
    """Statements under which code of the revision before would fail."""
    new = set(re.findall(r"CREATE TABLE (\w+)", sql))
    loosened = set(re.findall(r"DROP CONSTRAINT (\w+)", sql))
    found = []
    for statement in (" ".join(each.split()) for each in sql.split(";")):
        table = re.match(r"(?:ALTER TABLE|DROP TABLE|CREATE UNIQUE INDEX \w+ ON) (\w+)", statement)
        if table is None or table[1] in new:
            continue
        added = re.search(r"ADD CONSTRAINT (\w+)", statement)
        required = re.search(r"ADD COLUMN .* NOT NULL", statement) and " DEFAULT " not in statement
        wrong = re.match(r"DROP TABLE|CREATE UNIQUE", statement) or re.search(
            r"DROP COLUMN|RENAME|ALTER COLUMN \w+ (TYPE|SET NOT NULL|DROP DEFAULT)", statement
        )
        if wrong or required or (added and added[1] not in loosened):
            found.append(statement)
    return found


@pytest.mark.parametrize(("before", "revision"), list(itertools.pairwise(REVISIONS)))
def test_a_migration_only_adds(before: str, revision: str) -> None:
    assert breaking(statements_of(revision, before)) == [], (
        "old code serves while this runs: add first, and remove what nobody uses any more in a later release"
    )


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE jobs DROP COLUMN name",
        "ALTER TABLE jobs RENAME name TO title",
        "ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL",
        "ALTER TABLE jobs ALTER COLUMN name SET NOT NULL",
        "ALTER TABLE jobs ALTER COLUMN name TYPE INTEGER",
        "ALTER TABLE jobs ADD CONSTRAINT ck_jobs_name CHECK (name <> '')",
        "CREATE UNIQUE INDEX ux ON jobs (name)",
        "DROP TABLE workers",
    ],
)
def test_a_change_that_breaks_old_code_is_noticed(statement: str) -> None:
    assert breaking(f"BEGIN;\n{statement};\nCOMMIT;") == [statement]


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE jobs ADD COLUMN a TEXT; CREATE INDEX ix ON jobs (a)",
        "ALTER TABLE jobs ADD COLUMN a INTEGER DEFAULT '0' NOT NULL",
        "CREATE TABLE hooks (id TEXT NOT NULL); CREATE UNIQUE INDEX ux ON hooks (id)",
        "ALTER TABLE datasets DROP CONSTRAINT ck; ALTER TABLE datasets ADD CONSTRAINT ck CHECK (true)",
    ],
)
def test_a_change_that_only_adds_is_let_through(sql: str) -> None:
    assert breaking(sql) == []


def test_a_migration_that_has_to_wait_makes_nobody_else_wait(empty_database_url: str) -> None:
    migrate(empty_database_url, REVISIONS[0])
    failed: list[BaseException] = []

    def upgrade() -> None:
        try:
            migrate(empty_database_url)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=upgrade)
    with (
        psycopg.connect(empty_database_url) as report,
        psycopg.connect(empty_database_url, autocommit=True) as service,
    ):
        report.execute("SELECT count(*) FROM jobs, datasets, api_keys, attempts, layers, events, artifacts, workers")
        thread.start()
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database"
        wait_until(
            lambda: service.execute(f"{waits} WHERE datname = current_database())".encode()).fetchone(),
            what="the migration at the lock",
        )
        began = time.monotonic()
        service.execute("SELECT count(*) FROM jobs")
        assert time.monotonic() - began < 10
        assert thread.is_alive()
        report.rollback()
        thread.join(60)
        assert not thread.is_alive()
        assert failed == []
        command.check(alembic_config(empty_database_url))
