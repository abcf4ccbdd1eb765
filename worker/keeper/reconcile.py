"""Holds the ledger against the storage: rows whose bytes are gone, and bytes that no row names.

    python -m worker.keeper.reconcile [--verify] [--mark] [--delete] [--older-than HOURS] [--json]

Run it after a restore, or when storage was lost or moved. Without options it only looks. The exit code is 1 when bytes
of a row are missing or damaged. Safe beside a running service: what a worker or an upload may be busy with stays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from psycopg.types.json import Jsonb

from core.contract import uploads
from core.ledger.states import LEASED, JobStatus
from core.settings import read_settings
from core.storage import CHUNK, ObjectMissing, Storage, storage_from_url
from worker.keeper.sweep import DEAD_SECONDS, drop_unfinished_puts
from worker.ledger.connection import Connection, connect

OLDER_THAN_HOURS = 24.0
ID = re.compile(r"(?:job|ds)_([0-9a-f]{12})7[0-9a-f]{19}")
"""A uuid7 begins with the milliseconds at which it was made."""


@dataclass(frozen=True)
class Broken:
    """A row that promises bytes that are not there, or are others."""

    what: str
    """``artifact``, ``dataset`` or ``block``"""
    owner: str
    """The job or dataset."""
    name: str
    key: str
    why: str
    unreadable: bool = False
    """The storage would not say: it may be whole."""


@dataclass
class Findings:
    rows: int = 0
    """Rows looked at."""
    objects: int = 0
    broken: list[Broken] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    """Keys that no row names and that nobody is busy with."""
    unknown: list[str] = field(default_factory=list)
    """Keys of a kind that this program does not know; never deleted."""
    marked: int = 0
    deleted: int = 0

    @property
    def whole(self) -> bool:
        """No finished job and no dataset lacks bytes; a missing block is only computed again."""
        return all(each.what == "block" for each in self.broken)


def reconcile(
    connection: Connection,
    storage: Storage,
    *,
    verify: bool = False,
    mark: bool = False,
    delete: bool = False,
    older_than_hours: float = OLDER_THAN_HOURS,
) -> Findings:
    """Look, and where asked to: ``mark`` broken datasets invalid, ``delete`` orphans. ``verify`` reads every object."""
    findings = Findings()
    # Objects first: what is stored and named while we look must not seem unnamed.
    keys = sorted(storage.keys(""))
    findings.objects = len(keys)
    known_keys: set[str] = set()
    for row in _promises(connection):
        known_keys.add(row["key"])
        findings.rows += 1
        names = row["what"], row["owner"], row["name"], row["key"]
        try:
            if why := _what_is_wrong(storage, row, verify=verify):
                findings.broken.append(Broken(*names, why))
        except OSError as error:
            why = f"cannot be read: {error.strerror or error}"
            findings.broken.append(Broken(*names, why, unreadable=True))
    jobs = _jobs(connection)
    for key in keys:
        if key not in known_keys:
            _judge(key, jobs, findings, older_than=time.time() - older_than_hours * 3600)
    if mark:
        for broken in findings.broken:
            findings.marked += _mark(connection, broken)
    if delete:
        for key in findings.orphans:
            storage.delete(key)
        findings.deleted = len(findings.orphans)
        findings.deleted += drop_unfinished_puts(storage, hours=older_than_hours)
    return findings


PROMISES = (
    "SELECT 'artifact' AS what, job_id AS owner, name, key, bytes, sha256, job_id AS first, name AS second"
    " FROM artifacts WHERE (job_id, name) > (%(first)s, %(second)s) ORDER BY job_id, name LIMIT %(rows)s",
    "SELECT 'block' AS what, job_id AS owner, file->>'name' AS name, file->>'key' AS key, (file->>'bytes')::bigint AS"
    " bytes, file->>'sha256' AS sha256, job_id AS first, block::text AS second FROM ("
    "  SELECT job_id, block, files FROM layers"
    "  WHERE (job_id, block) > (%(first)s, coalesce(nullif(%(second)s, '')::int, -1))"
    "  ORDER BY job_id, block LIMIT %(rows)s) AS part LEFT JOIN jsonb_array_elements(files) AS file ON true"
    " ORDER BY job_id, block",
    "SELECT 'dataset' AS what, id AS owner, coalesce(name, id) AS name, key, bytes, sha256, id AS first, '' AS second"
    " FROM datasets WHERE id > %(first)s AND status = 'ready' AND key IS NOT NULL ORDER BY id LIMIT %(rows)s",
)
ROWS = 5000
"""Rows of one statement: a table of any size is read in parts, each long before its time limit."""


def _promises(connection: Connection) -> Iterator[dict[str, Any]]:
    """``what owner name key bytes sha256`` of everything that must be in storage."""
    for statement in PROMISES:
        place = {"first": "", "second": ""}
        while True:
            rows = connection.execute(statement.encode(), {**place, "rows": ROWS}).fetchall()
            if not rows:
                break
            yield from (row for row in rows if row["key"] is not None)
            place = {"first": rows[-1]["first"], "second": rows[-1]["second"]}


def _what_is_wrong(storage: Storage, row: dict[str, Any], *, verify: bool) -> str | None:
    """Raises OSError."""
    try:
        size = storage.size(row["key"])
        if size != row["bytes"]:
            return f"has {size} bytes instead of {row['bytes']}"
        if verify:
            digest = hashlib.sha256()
            with storage.open(row["key"]) as reader:
                while chunk := reader.read(CHUNK):
                    digest.update(chunk)
            if digest.hexdigest() != row["sha256"]:
                return "has another SHA-256"
    except ObjectMissing:
        return "is missing"
    return None


def _jobs(connection: Connection) -> dict[str, bool]:
    """Every job, and whether someone may be busy with its files: it has not ended, or has only just."""
    busy: dict[str, bool] = {}
    last = ""
    while True:
        rows = connection.execute(
            "SELECT id, status = ANY(%s) OR coalesce((SELECT max(ended_at) FROM attempts WHERE job_id = jobs.id)"
            " > clock_timestamp() - make_interval(secs => %s), false) AS busy FROM jobs WHERE id > %s"
            " ORDER BY id LIMIT %s",
            ([status.value for status in (*LEASED, JobStatus.QUEUED)], DEAD_SECONDS, last, ROWS),
        ).fetchall()
        if not rows:
            return busy
        busy |= {row["id"]: row["busy"] for row in rows}
        last = rows[-1]["id"]


def _judge(key: str, jobs: dict[str, bool], findings: Findings, *, older_than: float) -> None:
    folder, _, rest = key.partition("/")
    owner = rest.partition("/")[0]
    match folder:
        case "jobs" if owner in jobs:
            if not jobs[owner]:
                findings.orphans.append(key)
        case "jobs" | "datasets":
            at = _made_at(owner)
            if at is None:
                findings.unknown.append(key)
            elif at < older_than:
                findings.orphans.append(key)
        case uploads.PREFIX:
            pass  # nothing names them, and the keeper drops what was not completed
        case "readiness":
            findings.orphans.append(key)
        case _:
            findings.unknown.append(key)


def _made_at(identifier: str) -> float | None:
    match = ID.fullmatch(identifier)
    return None if match is None else int(match[1], 16) / 1000


def _mark(connection: Connection, broken: Broken) -> int:
    """A dataset without its bytes can calibrate nothing: new jobs are refused, and its owner sees why."""
    if broken.what != "dataset" or broken.unreadable:  # the bytes of a row without a key are swept
        return 0
    return connection.execute(
        "UPDATE datasets SET status = 'invalid', key = NULL, problems = %s WHERE id = %s AND status = 'ready'",
        (Jsonb([{"row": None, "message": f"the stored file {broken.why}: upload the rows again"}]), broken.owner),
    ).rowcount


def _lines(findings: Findings) -> Iterator[str]:
    yield f"{findings.rows} rows against {findings.objects} objects"
    for broken in findings.broken:
        yield f"  broken   {broken.what} {broken.name!r} of {broken.owner}: {broken.key} {broken.why}"
    for key in findings.orphans:
        yield f"  orphan   {key}"
    for key in findings.unknown:
        yield f"  unknown  {key}"
    yield (
        f"{len(findings.broken)} broken ({findings.marked} datasets marked), {len(findings.orphans)} orphans"
        f" ({findings.deleted} deleted), {len(findings.unknown)} unknown"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verify", action="store_true", help="read every object and compare its SHA-256")
    parser.add_argument("--mark", action="store_true", help="mark datasets without their bytes as invalid")
    parser.add_argument("--delete", action="store_true", help="delete objects that no row names")
    parser.add_argument("--older-than", type=float, default=OLDER_THAN_HOURS, metavar="HOURS", help="age of orphans")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    settings = read_settings()
    if settings.database_url is None:
        raise SystemExit("QE_DATABASE_URL is not set: reconciling needs the address of the ledger, postgresql://…")
    with connect(settings.database_url) as connection:
        findings = reconcile(
            connection,
            storage_from_url(settings.resolved_storage_url),
            verify=arguments.verify,
            mark=arguments.mark,
            delete=arguments.delete,
            older_than_hours=arguments.older_than,
        )
    text = json.dumps(asdict(findings)) if arguments.json else "\n".join(_lines(findings))
    sys.stdout.write(text + "\n")
    return 0 if findings.whole else 1


if __name__ == "__main__":
    sys.exit(main())
