"""Removing what was deleted, and what has been kept for as long as its tenant wants it. Safe at any time, and twice."""

from __future__ import annotations

from typing import Any

from core.settings import Settings
from core.storage import Storage
from worker.keeper.sweep import DEAD_SECONDS
from worker.ledger.connection import Connection

AT_ONCE = 1000
"""Rows of one statement: each is over long before its time limit."""
NEEDED = """EXISTS (SELECT FROM jobs AS other WHERE other.tenant = jobs.tenant
    AND (other.status = 'queued' OR other.lease_until IS NOT NULL)
    AND (other.forked_from = jobs.id OR other.comparison_id = jobs.comparison_id))"""
"""Somebody may still take over its blocks. In the words of the partial indexes of unfinished jobs."""

UNNEEDED = f"""SELECT id FROM jobs WHERE deleted_at IS NOT NULL AND NOT {NEEDED} AND NOT EXISTS (SELECT FROM attempts
    WHERE job_id = jobs.id AND ended_at > clock_timestamp() - make_interval(secs => %s))
    ORDER BY deleted_at LIMIT 1 FOR UPDATE SKIP LOCKED"""  # noqa: S608 -- every part is ours


def remove_deleted_jobs(connection: Connection, storage: Storage, *, dead_seconds: float = DEAD_SECONDS) -> int:
    """Remove deleted jobs whose blocks nobody needs, and whose last attempt has no process left that still writes."""
    count = 0
    while True:
        with connection.transaction():
            row = connection.execute(
                UNNEEDED.encode(),
                (dead_seconds,),
            ).fetchone()
            if row is None:
                return count
            # The bytes first: when we die in between, the row is still there and this is done again.
            storage.delete_under(f"jobs/{row['id']}")
            connection.execute("DELETE FROM storage_removals WHERE prefix LIKE %s", (f"jobs/{row['id']}/%",))
            connection.execute("DELETE FROM jobs WHERE id = %s", (row["id"],))
        count += 1


def remove_artifacts_of_deleted(connection: Connection, storage: Storage) -> int:
    """Remove the artifacts of deleted jobs whose blocks are still needed: they are most of the bytes."""
    rows = connection.execute(
        "SELECT DISTINCT job_id, artifacts.attempt FROM jobs JOIN artifacts ON artifacts.job_id = jobs.id"
        " WHERE deleted_at IS NOT NULL LIMIT %s",
        (AT_ONCE,),
    ).fetchall()
    for row in rows:
        storage.delete_under(f"jobs/{row['job_id']}/a{row['attempt']}")
        connection.execute("DELETE FROM artifacts WHERE job_id = %s AND attempt = %s", (row["job_id"], row["attempt"]))
    return len(rows)


def remove_objects(connection: Connection, storage: Storage) -> int:
    """What deleted artifacts left in storage."""
    rows = connection.execute("SELECT prefix FROM storage_removals ORDER BY created_at LIMIT %s", (AT_ONCE,)).fetchall()
    for row in rows:
        storage.delete_under(row["prefix"])
        connection.execute("DELETE FROM storage_removals WHERE prefix = %s", (row["prefix"],))
    return len(rows)


def retire(connection: Connection, settings: Settings) -> int:
    """Delete what every tenant's retention says; returns the number of rows."""
    names = ("jobs_days", "events_days", "layers_days", "audit_days", "deliveries_days")
    defaults = {name: getattr(settings, f"keep_{name}") for name in names}
    count = 0
    for tenant in _tenants(connection, everyone=any(defaults.values())):
        row = connection.execute("SELECT * FROM retention WHERE tenant = %s", (tenant,)).fetchone() or {}
        days = {name: row.get(name) or defaults[name] for name in names}
        count += _retire_jobs(connection, tenant, days["jobs_days"])
        count += _trim(connection, tenant, days["events_days"], row.get("events_until"), EVENTS)
        count += _trim(connection, tenant, days["layers_days"], row.get("layers_until"), LAYERS)
        count += _delete_old(connection, tenant, days["audit_days"], AUDIT)
        count += _delete_old(connection, tenant, days["deliveries_days"], DELIVERIES)
    return count


AUDIT = """DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE tenant = %(tenant)s
    AND created_at < clock_timestamp() - make_interval(days => %(days)s) LIMIT %(most)s)"""
DELIVERIES = """DELETE FROM webhook_deliveries WHERE id IN (SELECT id FROM webhook_deliveries WHERE tenant = %(tenant)s
    AND finished_at < clock_timestamp() - make_interval(days => %(days)s) LIMIT %(most)s)"""
OLD_JOBS = """SELECT delete_jobs(%(tenant)s, ARRAY(SELECT id FROM jobs WHERE tenant = %(tenant)s
    AND finished_at < clock_timestamp() - make_interval(days => %(days)s) AND deleted_at IS NULL
    AND (alias IS NULL OR status <> 'succeeded' OR EXISTS (SELECT FROM jobs AS newer WHERE newer.tenant = jobs.tenant
        AND newer.alias = jobs.alias AND newer.status = 'succeeded' AND newer.finished_at > jobs.finished_at))
    ORDER BY finished_at LIMIT %(most)s))"""
EVENTS = """DELETE FROM events USING jobs WHERE jobs.id = ANY(%(ids)s) AND job_id = jobs.id AND seq < jobs.event_seq"""
LAYERS = """DELETE FROM layers WHERE job_id = ANY(%(ids)s) AND files = '[]'::jsonb"""


def _tenants(connection: Connection, *, everyone: bool) -> list[str]:
    """Who has anything to retire: those that say so, or all where the service has defaults."""
    rows = connection.execute(
        # One step of the index for each tenant, however many rows it has.
        "WITH RECURSIVE known AS ("
        " (SELECT tenant FROM jobs ORDER BY tenant LIMIT 1)"
        " UNION ALL SELECT (SELECT tenant FROM jobs WHERE tenant > known.tenant ORDER BY tenant LIMIT 1)"
        "  FROM known WHERE known.tenant IS NOT NULL)"
        " SELECT tenant FROM (SELECT tenant FROM known UNION SELECT tenant FROM webhooks"
        "  UNION SELECT tenant FROM api_keys) AS everyone WHERE %s AND tenant IS NOT NULL"
        " UNION SELECT tenant FROM retention",
        (everyone,),
    ).fetchall()
    return [row["tenant"] for row in rows]


def _retire_jobs(connection: Connection, tenant: str, days: int | None) -> int:
    return _in_parts(connection, OLD_JOBS, {"tenant": tenant, "days": days}) if days else 0


def _delete_old(connection: Connection, tenant: str, days: int | None, statement: str) -> int:
    return _in_parts(connection, statement, {"tenant": tenant, "days": days}) if days else 0


def _in_parts(connection: Connection, statement: str, values: dict[str, Any]) -> int:
    total = 0
    while count := connection.execute(statement.encode(), {**values, "most": AT_ONCE}).rowcount:
        total += count
    return total


def _trim(connection: Connection, tenant: str, days: int | None, until: Any, statement: str) -> int:
    """Go on from where the last sweep ended, over the jobs that have ended since then and long enough ago."""
    if not days:
        return 0
    column = "events_until" if statement is EVENTS else "layers_until"
    connection.execute("INSERT INTO retention (tenant) VALUES (%s) ON CONFLICT DO NOTHING", (tenant,))
    total = 0
    while True:
        with connection.transaction():
            rows = connection.execute(
                "SELECT id, finished_at FROM jobs WHERE tenant = %s"
                " AND finished_at > coalesce(%s, '-infinity'::timestamptz)"
                " AND finished_at < clock_timestamp() - make_interval(days => %s) ORDER BY finished_at LIMIT %s",
                (tenant, until, days, AT_ONCE),
            ).fetchall()
            if not rows:
                return total
            total += connection.execute(statement.encode(), {"ids": [row["id"] for row in rows]}).rowcount
            until = rows[-1]["finished_at"]
            connection.execute(
                f"UPDATE retention SET {column} = %s WHERE tenant = %s".encode(),  # noqa: S608 -- one of ours
                (until, tenant),
            )
