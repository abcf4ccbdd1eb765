"""What must hold whatever is pulled out: I1 to I10 over the real ledger, storage and process table.

Every check looks at facts that were not written for it: rows, objects, processes. ``check`` returns all violations,
each one sentence; none means that nothing was lost and nothing happened twice.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.contract.events import AFTER_SUCCESS, TERMINAL, EventType
from core.ledger.states import FINISHED, LEASED, AttemptOutcome, JobStatus
from core.storage import LocalStorage
from tests.faults.process_table import Overlap
from worker.keeper import removal, sweep
from worker.ledger.connection import Connection

MEANING = {
    "I1": "every accepted job reaches a terminal state",
    "I2": "at most one runner per job computes",
    "I3": "one terminal transition, one terminal event, one webhook event id",
    "I4": "one layer row per job and block, written by who held the job",
    "I5": "killed runs end with the bytes of undisturbed ones",
    "I6": "event numbers are dense",
    "I7": "an artifact row implies an object with that digest",
    "I8": "no orphan process 10 s after a kill",
    "I9": "one idempotency key makes one job",
    "I10": "disk of dead attempts and finished chains is reclaimed",
}
EPHEMERAL = {"quality_report.json", "quality_report.html", "README.md", "SHA256SUMS"}
"""Files of a checkpoint that tell how long the run took."""


@dataclass(frozen=True)
class Violation:
    invariant: str
    """``I1`` to ``I10``."""
    sentence: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.sentence}"


@dataclass(frozen=True)
class Evidence:
    """What the ledger alone does not tell: what clients were answered, and what ran."""

    accepted: Collection[str] = ()
    """Ids of jobs whose creation was answered with 2xx."""
    answers: Mapping[str, Collection[str]] | None = None
    """Idempotency key → the ids that requests with it were answered with."""
    overlaps: Collection[Overlap] = ()
    """Two attempts at one job that were seen computing at once."""
    orphans: Collection[str] = ()
    """Processes that outlived who started them by more than ten seconds."""


Found = Iterator[Violation]


def check(
    connection: Connection, storage: LocalStorage, *, evidence: Evidence | None = None, work: Path | None = None
) -> list[Violation]:
    """Every violation of I1 to I10, once all jobs have had the time to end.

    ``work``: the directory of the workers' scratch space; with it the sweep is run, as the keeper does after a while,
    and what it leaves is looked at. No process may still be working then.
    """
    evidence = evidence or Evidence()
    jobs = {row["id"]: row for row in connection.execute("SELECT * FROM jobs ORDER BY id").fetchall()}
    found = [
        *_ended(jobs, evidence.accepted),
        *_computed_alone(evidence.overlaps),
        *_ended_once(connection, jobs),
        *_webhooks_once(connection),
        *_layers_fenced(connection, jobs),
        *_same_bytes(connection, jobs),
        *_dense_events(connection, jobs),
        *_artifacts_whole(connection, storage, jobs),
        *(Violation("I8", f"{orphan} outlived who started it.") for orphan in evidence.orphans),
        *_one_job_per_key(connection, evidence.answers or {}),
    ]
    if work is not None:
        found += _reclaimed(connection, storage, work)
    return found


def _ended(jobs: Mapping[str, Any], accepted: Iterable[str]) -> Found:
    for job_id in accepted:
        if job_id not in jobs:
            yield Violation("I1", f"{job_id} was accepted and is not in the ledger.")
    for job_id, job in jobs.items():
        if job["status"] not in FINISHED:
            yield Violation("I1", f"{job_id} is still {job['status']} (attempt {job['attempt']}).")


def _computed_alone(overlaps: Iterable[Overlap]) -> Found:
    for overlap in overlaps:
        yield Violation("I2", f"{overlap}.")


def _ended_once(connection: Connection, jobs: Mapping[str, Any]) -> Found:
    """A terminal event ends a job's story until a retry, and agrees with its row and with its attempts."""
    story: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute("SELECT job_id, type FROM events ORDER BY job_id, seq").fetchall():
        story[row["job_id"]].append(row["type"])
    for job_id, kinds in story.items():
        for earlier, later in pairwise(kinds):
            if earlier in TERMINAL and later not in AFTER_SUCCESS | {EventType.RETRIED}:
                yield Violation("I3", f"{job_id} has the event {later} after its terminal event {earlier}.")
    for job_id, job in jobs.items():
        last = (story[job_id] or ["nothing"])[-1]
        if job["status"] in FINISHED and last != f"job.{job['status']}":
            yield Violation("I3", f"{job_id} is {job['status']} and its last event is {last}.")
        if job["status"] not in FINISHED and last in TERMINAL:
            yield Violation("I3", f"{job_id} is {job['status']} after its terminal event {last}.")
    yield from _attempts_in_turn(connection, jobs)


def _attempts_in_turn(connection: Connection, jobs: Mapping[str, Any]) -> Found:
    attempts: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute("SELECT * FROM attempts ORDER BY job_id, attempt").fetchall():
        attempts[row["job_id"]].append(row)
    for job_id, rows in attempts.items():
        job = jobs[job_id]
        if [row["attempt"] for row in rows] != list(range(1, job["attempt"] + 1)):
            yield Violation("I3", f"{job_id} counts {job['attempt']} attempts and has rows of {len(rows)}.")
        for earlier, later in pairwise(rows):
            if earlier["ended_at"] is None or earlier["ended_at"] > later["started_at"]:
                yield Violation(
                    "I3", f"{job_id}: attempt {earlier['attempt']} had not ended when {later['attempt']} began."
                )
        good = [row["attempt"] for row in rows if row["outcome"] == AttemptOutcome.SUCCEEDED]
        wanted = [job["attempt"]] if job["status"] == JobStatus.SUCCEEDED else []
        if good != wanted:
            yield Violation("I3", f"{job_id} is {job['status']} at attempt {job['attempt']}; succeeded ones: {good}.")
        if job["status"] not in LEASED and rows[-1]["ended_at"] is None:
            yield Violation("I3", f"{job_id} is {job['status']} and its attempt {rows[-1]['attempt']} has no end.")


def _webhooks_once(connection: Connection) -> Found:
    """Every message tells of an event that is there, and of each event a webhook is told under one id. With a deleted
    job its events go; what was told of it stays."""
    told = (
        "SELECT d.webhook_id, e.job_id, e.seq, min(d.message_id) AS message, count(DISTINCT d.message_id) AS ids"
        " FROM webhook_deliveries d LEFT JOIN events e ON e.job_id = d.payload#>>'{data,job,id}'"
        " AND e.seq = (d.payload#>>'{data,seq}')::bigint AND e.type = d.event_type"
        " WHERE NOT EXISTS (SELECT FROM audit WHERE action = 'job.deleted' AND object_id = d.payload#>>'{data,job,id}')"
        " GROUP BY d.webhook_id, e.job_id, e.seq HAVING e.seq IS NULL OR count(DISTINCT d.message_id) > 1"
    )
    for row in connection.execute(told.encode()).fetchall():
        if row["seq"] is None:
            yield Violation("I3", f"the webhook message {row['message']} tells of an event that is not there.")
        else:
            yield Violation("I3", f"event {row['seq']} of {row['job_id']} was told under {row['ids']} ids.")


def _layers_fenced(connection: Connection, jobs: Mapping[str, Any]) -> Found:
    """The key of the table keeps rows apart; who wrote them, and when, must fit a hold on the job."""
    blocks: dict[str, list[int]] = defaultdict(list)
    for row in connection.execute(
        "SELECT l.job_id, l.block, l.attempt, a.attempt IS NOT NULL AS known,"
        " l.created_at BETWEEN a.started_at AND coalesce(a.ended_at, 'infinity') AS held FROM layers l"
        " LEFT JOIN attempts a ON a.job_id = l.job_id AND a.attempt = l.attempt ORDER BY l.job_id, l.block"
    ).fetchall():
        blocks[row["job_id"]].append(row["block"])
        if not row["known"] or not row["held"]:
            yield Violation(
                "I4", f"{row['job_id']}: block {row['block']} is of attempt {row['attempt']}, which did not hold it."
            )
    for job_id, job in jobs.items():
        total = job["blocks_total"]
        if job["status"] == JobStatus.SUCCEEDED and blocks[job_id] != list(range(total or 0)):
            yield Violation("I4", f"{job_id} succeeded with {total} blocks and has rows of {blocks[job_id]}.")


def _same_bytes(connection: Connection, jobs: Mapping[str, Any]) -> Found:
    """Jobs that asked for the same have the same artifacts, whatever happened on the way."""
    artifacts: dict[str, dict[str, str]] = defaultdict(dict)
    for row in connection.execute("SELECT job_id, name, sha256 FROM artifacts").fetchall():
        if row["name"] not in EPHEMERAL:
            artifacts[row["job_id"]][row["name"]] = row["sha256"]
    first: dict[str, str] = {}
    for job_id, job in sorted(jobs.items(), key=lambda item: item[1]["attempt"]):
        if job["status"] != JobStatus.SUCCEEDED:
            continue
        if not artifacts[job_id]:
            yield Violation("I5", f"{job_id} succeeded and has no artifacts.")
        asked = repr(sorted((k, v) for k, v in job["spec"].items() if k not in ("name", "labels", "timeout_s")))
        like = first.setdefault(asked, job_id)
        different = {
            name
            for name in artifacts[job_id].keys() | artifacts[like].keys()
            if artifacts[job_id].get(name) != artifacts[like].get(name)
        }
        if different:
            yield Violation("I5", f"{job_id} differs from {like}, which asked for the same, in {sorted(different)}.")


def _dense_events(connection: Connection, jobs: Mapping[str, Any]) -> Found:
    for row in connection.execute(
        "SELECT j.id, j.event_seq, count(e.seq) AS events, coalesce(min(e.seq), 0) AS first,"
        " coalesce(max(e.seq), 0) AS last FROM jobs j LEFT JOIN events e ON e.job_id = j.id GROUP BY j.id"
    ).fetchall():
        if not (row["events"] == row["last"] == row["event_seq"] and row["first"] == min(1, row["last"])):
            yield Violation(
                "I6",
                f"{row['id']} has {row['events']} events numbered {row['first']} to {row['last']}"
                f" and counts {row['event_seq']}.",
            )


def _artifacts_whole(connection: Connection, storage: LocalStorage, jobs: Mapping[str, Any]) -> Found:
    for row in connection.execute("SELECT * FROM artifacts ORDER BY job_id, name").fetchall():
        job, where = jobs[row["job_id"]], f"{row['job_id']}: the artifact {row['name']}"
        if (job["status"], job["attempt"]) != (JobStatus.SUCCEEDED, row["attempt"]):
            yield Violation("I7", f"{where} is of attempt {row['attempt']} of a job that is {job['status']}.")
        path = storage.local_path(row["key"])
        if job["deleted_at"] is not None:
            continue
        if not path.is_file():
            yield Violation("I7", f"{where} has no object {row['key']}.")
            continue
        content = path.read_bytes()
        if (len(content), hashlib.sha256(content).hexdigest()) != (row["bytes"], row["sha256"]):
            yield Violation("I7", f"{where} has an object with other bytes than its row says.")


def _one_job_per_key(connection: Connection, answers: Mapping[str, Collection[str]]) -> Found:
    for key, ids in answers.items():
        if len(set(ids)) > 1:
            yield Violation("I9", f"the idempotency key {key} was answered with {sorted(set(ids))}.")
    for row in connection.execute(
        "SELECT labels->>'key' AS key, count(*) AS jobs FROM jobs WHERE labels ? 'key'"
        " GROUP BY tenant, labels->>'key' HAVING count(*) > 1"
    ).fetchall():
        yield Violation("I9", f"the idempotency key {row['key']} made {row['jobs']} jobs.")


def _reclaimed(connection: Connection, storage: LocalStorage, work: Path) -> Found:
    """Sweep as if ten minutes had passed; then every file has somebody who needs it."""
    sweep.drop_work_directories(connection, work, dead_seconds=0)
    sweep.drop_dead_artifacts(connection, storage, dead_seconds=0)
    sweep.drop_unnamed_uploads(connection, storage, hours=0)
    sweep.drop_unfinished_puts(storage, hours=0)
    while sweep.drop_block_files(connection, storage):
        continue
    while removal.remove_deleted_jobs(connection, storage) or removal.remove_objects(connection, storage):
        continue
    for path in sorted(work.glob("*/*")):
        yield Violation("I10", f"the scratch directory {path.relative_to(work)} is of no living attempt.")
    needed = {row["key"] for row in connection.execute("SELECT key FROM artifacts").fetchall()}
    needed |= {row["key"] for row in connection.execute("SELECT key FROM datasets WHERE key IS NOT NULL").fetchall()}
    for row in connection.execute("SELECT files FROM layers").fetchall():
        needed |= {file["key"] for file in row["files"]}
    resumable = {
        row["id"]
        for row in connection.execute("SELECT id FROM jobs WHERE status <> 'succeeded'").fetchall()
    }  # fmt: skip
    for path in sorted(storage.root.rglob("*")):
        key = path.relative_to(storage.root).as_posix()
        # Superseded blocks of a job that may go on wait for its end.
        if path.is_file() and key not in needed and not _block_of(key, resumable.__contains__):
            yield Violation("I10", f"nothing refers to the object {key}.")


def _block_of(key: str, wanted: Callable[[str], bool]) -> bool:
    parts = key.split("/")
    return len(parts) == 4 and parts[0] == "jobs" and parts[2] == "blocks" and wanted(parts[1])
