"""Removing what nobody needs any more. Every function is safe to run at any time, twice, and beside another keeper."""

from __future__ import annotations

import contextlib
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from psycopg.types.json import Jsonb

from core.contract import uploads
from core.contract.block_files import CAPTURED_INPUTS_FILES
from core.contract.ids import made_at, new_id
from core.crash_points import reach
from core.ledger.states import FINISHED, LEASED, AttemptOutcome, JobStatus
from core.storage import LocalStorage, Storage
from worker.ledger.attempts import AttemptRef
from worker.ledger.connection import Connection
from worker.pushes.pushing import PREFIX

IDEMPOTENCY_HOURS = 24
PLAN_HOURS = 24
WORKER_HOURS = 1
DEAD_SECONDS = 600.0
"""An attempt that ended this long ago has no process left that still writes."""
DEAD_WINDOW_DAYS = 7
RESUMABLE_HOURS = 24
"""For this long a failed or cancelled job keeps its finished blocks, so that a retry goes on where it stopped."""
UNNAMED_HOURS = 48
"""An upload has its row a moment after its bytes; one in parts has the id of its beginning, a day before."""
EXPIRED_DAYS = 30
"""For this long an expired dataset is still known by name."""
KEEPER, EXPIRED = "keeper", "dataset.expired"
"""Who and what, in the audit log."""
LOG_DAYS = 14
UNFINISHED_HOURS = 24


def forget_idempotency(connection: Connection) -> int:
    """Drop answers to idempotent requests after 24 hours."""
    return connection.execute(
        "DELETE FROM idempotency WHERE created_at < clock_timestamp() - make_interval(hours => %s)",
        (IDEMPOTENCY_HOURS,),
    ).rowcount


def forget_plans(connection: Connection) -> int:
    """Drop plans that no job can be made of any more."""
    return connection.execute(
        "DELETE FROM plans WHERE created_at < clock_timestamp() - make_interval(hours => %s)", (PLAN_HOURS,)
    ).rowcount


def forget_workers(connection: Connection) -> int:
    """Drop workers that were not seen for an hour: killed, or on a machine that is gone."""
    return connection.execute(
        "DELETE FROM workers WHERE seen_at < clock_timestamp() - make_interval(hours => %s)", (WORKER_HOURS,)
    ).rowcount


def drop_block_files(connection: Connection, storage: Storage, *, resumable_hours: float = RESUMABLE_HOURS) -> int:
    """Drop the files from which a finished job could have been resumed; the reports of its blocks stay.

    A failed or cancelled job keeps them for a while. Of one that succeeded only the captured inputs stay as long:
    a fork or a comparison may begin with them.
    """
    jobs = connection.execute(
        # In the words of the partial index: the blocks of most jobs have lost their files long ago.
        "SELECT id FROM jobs WHERE id IN (SELECT job_id FROM layers WHERE files <> '[]'::jsonb) AND ("
        " (status = ANY(%(ended)s) AND finished_at < clock_timestamp() - make_interval(secs => %(seconds)s))"
        " OR (status = %(succeeded)s AND EXISTS (SELECT FROM layers, jsonb_array_elements(files) file"
        "  WHERE job_id = jobs.id AND files <> '[]'::jsonb AND NOT file->>'name' = ANY(%(names)s)))) LIMIT 10000",
        {
            "succeeded": JobStatus.SUCCEEDED.value,
            "ended": [status.value for status in FINISHED],
            "seconds": resumable_hours * 3600,
            "names": list(CAPTURED_INPUTS_FILES),
        },
    ).fetchall()
    count = 0
    for job in jobs:
        with connection.transaction():
            # A retry may come in between, and its end: what is true under the lock on the row decides.
            still = connection.execute(
                "SELECT status, finished_at < clock_timestamp() - make_interval(secs => %s) AS all_of_them FROM jobs"
                " WHERE id = %s AND status = ANY(%s) FOR UPDATE",
                (resumable_hours * 3600, job["id"], [status.value for status in FINISHED]),
            ).fetchone()
            if still is None or not (still["all_of_them"] or still["status"] == JobStatus.SUCCEEDED):
                continue
            # The bytes go inside the transaction: a retry that waits for the row must not store the same blocks under
            # us.
            if still["all_of_them"]:
                connection.execute("UPDATE layers SET files = '[]' WHERE job_id = %s", (job["id"],))
                storage.delete_under(f"jobs/{job['id']}/blocks")
            else:
                _drop_all_but_captured_inputs(connection, storage, job["id"])
            reach("sweep.before_commit")
        count += 1
    return count


def _drop_all_but_captured_inputs(connection: Connection, storage: Storage, job_id: str) -> None:
    keys: set[str] = set()
    for row in connection.execute("SELECT block, files FROM layers WHERE job_id = %s", (job_id,)).fetchall():
        captured_inputs = [file for file in row["files"] if file["name"] in CAPTURED_INPUTS_FILES]
        keys |= {file["key"] for file in captured_inputs}
        connection.execute(
            "UPDATE layers SET files = %s WHERE job_id = %s AND block = %s",
            (Jsonb(captured_inputs), job_id, row["block"]),
        )
    for key in list(storage.keys(f"jobs/{job_id}/blocks")):
        if key not in keys:
            storage.delete(key)


def drop_dead_artifacts(connection: Connection, storage: Storage, *, dead_seconds: float = DEAD_SECONDS) -> int:
    """Drop objects of attempts that ended without success: never visible, because no row names them."""
    attempts = connection.execute(
        "SELECT job_id, attempt FROM attempts WHERE outcome <> %s"
        " AND ended_at < clock_timestamp() - make_interval(secs => %s)"
        " AND ended_at > clock_timestamp() - make_interval(days => %s)",
        (AttemptOutcome.SUCCEEDED.value, dead_seconds, DEAD_WINDOW_DAYS),
    ).fetchall()
    for row in attempts:
        storage.delete_under(AttemptRef(row["job_id"], row["attempt"]).prefix)
    return len(attempts)


def drop_expired_uploads(storage: Storage) -> int:
    """Drop the parts of uploads that were begun a day ago and not completed."""
    now = datetime.now(UTC)
    folders = {"/".join(key.split("/")[:3]): key.split("/")[2:3] for key in storage.keys(uploads.PREFIX)}
    old_folders = [
        folder
        for folder, upload in folders.items()
        if upload and uploads.UPLOAD_ID.fullmatch(upload[0]) and uploads.expires_at(upload[0]) < now
    ]
    for folder in old_folders:
        storage.delete_under(folder)
    return len(old_folders)


def expire_datasets(connection: Connection, storage: Storage) -> int:
    """Drop the bytes of datasets whose time is over and that no unfinished job needs; the row says so for a while."""
    due = connection.execute(
        "SELECT id FROM datasets WHERE expires_at <= clock_timestamp() AND key IS NOT NULL"
        " ORDER BY expires_at LIMIT 1000"
    ).fetchall()
    count = 0
    for row in due:
        with connection.transaction():
            # A job that is just being made holds a lock on the row; its owner may also have put the end off.
            dataset = connection.execute(
                "SELECT tenant, key, bytes, expires_at FROM datasets"
                " WHERE id = %s AND expires_at <= clock_timestamp() AND key IS NOT NULL FOR UPDATE SKIP LOCKED",
                (row["id"],),
            ).fetchone()
            if dataset is None or _is_needed(connection, dataset["tenant"], row["id"]):
                continue
            connection.execute("UPDATE datasets SET key = NULL WHERE id = %s", (row["id"],))
            connection.execute(
                "INSERT INTO audit (id, tenant, key_id, action, object_id, request_id, details)"
                " VALUES (%s, %s, %s, %s, %s, '', %s)",
                (
                    new_id("aud"),
                    dataset["tenant"],
                    KEEPER,
                    EXPIRED,
                    row["id"],
                    Jsonb({"bytes": dataset["bytes"], "expires_at": dataset["expires_at"].isoformat()}),
                ),
            )
        # After the commit, as a deletion does it: bytes without a row do no harm, and are swept.
        storage.delete(dataset["key"])
        count += 1
    connection.execute(
        "DELETE FROM datasets WHERE key IS NULL AND expires_at < clock_timestamp() - make_interval(days => %s)",
        (EXPIRED_DAYS,),
    )
    return count


def _is_needed(connection: Connection, tenant: str, dataset_id: str) -> bool:
    # In the words of the partial indexes: every unfinished job is queued or has a lease.
    parts = (
        f"(SELECT 1 FROM jobs WHERE tenant = %(tenant)s AND {column} = %(dataset)s AND {unfinished} LIMIT 1)"  # noqa: S608
        for column in ("dataset", "evaluation_dataset")
        for unfinished in ("status = 'queued'", "lease_until IS NOT NULL")
    )
    row = connection.execute(" UNION ALL ".join(parts), {"tenant": tenant, "dataset": dataset_id}).fetchone()
    return row is not None


def drop_unfinished_puts(storage: Storage, *, hours: float = UNFINISHED_HOURS) -> int:
    """Drop what processes that were killed while they stored it left half done. An object store never shows such."""
    if not isinstance(storage, LocalStorage):
        return 0
    return storage.drop_unfinished(older_than=time.time() - hours * 3600)


def drop_unnamed_uploads(connection: Connection, storage: Storage, *, hours: float = UNNAMED_HOURS) -> int:
    """Drop uploaded rows that no dataset names: the API died after storing them, or before removing them."""
    count = 0
    for name in {key.split("/")[1] for key in storage.keys("datasets")}:
        try:
            at = made_at(name)
        except ValueError:
            continue
        is_free = connection.execute(
            "SELECT 1 WHERE to_timestamp(%s) <= clock_timestamp() - make_interval(secs => %s)"
            " AND NOT EXISTS (SELECT FROM datasets WHERE id = %s AND key IS NOT NULL)",
            (at, hours * 3600, name),
        ).fetchone()
        if is_free is not None:
            storage.delete_under(f"datasets/{name}")
            count += 1
    return count


def drop_work_directories(connection: Connection, work: Path, *, dead_seconds: float = DEAD_SECONDS) -> int:
    """Drop this machine's scratch directories of attempts that are over: their worker was killed before it could."""
    count = 0
    for directory in sorted(work.glob("*/a*")):
        number = directory.name.removeprefix("a")
        if not number.isdigit():
            continue
        alive = connection.execute(
            "SELECT 1 FROM jobs WHERE id = %s AND attempt = %s AND status = ANY(%s)",
            (directory.parent.name, int(number), [status.value for status in LEASED]),
        ).fetchone()
        recent = connection.execute(
            "SELECT 1 FROM attempts WHERE job_id = %s AND attempt = %s"
            " AND (ended_at IS NULL OR ended_at > clock_timestamp() - make_interval(secs => %s))",
            (directory.parent.name, int(number), dead_seconds),
        ).fetchone()
        if alive is None and recent is None:
            shutil.rmtree(directory, ignore_errors=True)
            count += 1
    for parent in work.glob("*"):
        # A young one is that of an attempt whose own directory is about to be made in it.
        with contextlib.suppress(OSError):
            if parent.is_dir() and parent.stat().st_mtime < time.time() - dead_seconds and not any(parent.iterdir()):
                parent.rmdir()
    return count


def drop_push_directories(work: Path, *, hours: float = UNFINISHED_HOURS) -> int:
    """Drop what pushes had on disk here whose keeper was killed. No attempt takes longer than a day."""
    old = [each for each in work.glob(f"{PREFIX}*") if each.stat().st_mtime < time.time() - hours * 3600]
    for directory in old:
        shutil.rmtree(directory, ignore_errors=True)
    return len(old)


def drop_logs(logs: Path, *, days: float = LOG_DAYS) -> int:
    """Drop logs of runners and pushes that nobody wrote to for two weeks."""
    count = 0
    for log in (*logs.glob("runner-*.log"), *logs.glob("push_*.log")):
        if log.stat().st_mtime < time.time() - days * 24 * 3600:
            log.unlink(missing_ok=True)
            count += 1
    return count
