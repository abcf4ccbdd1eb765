"""Finished blocks in the ledger: what each left in storage, and what a later attempt or another job goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from core.contract.block_files import CAPTURED_INPUTS_FILES
from core.contract.events import EventType
from core.crash_points import reach
from core.ledger import transitions
from worker.ledger import attempts as ledger
from worker.ledger.attempts import AttemptRef
from worker.ledger.connection import Connection

NEWEST_WEIGHT = 0.3
"""Weight of the newest block in the moving average of seconds per block."""
RECENT = 16
"""Rows of the last blocks, for the files that a new one supersedes."""


def record_block(
    connection: Connection,
    ref: AttemptRef,
    *,
    block: int,
    blocks: int,
    seconds: float,
    report: Mapping[str, Any],
    files: Sequence[Mapping[str, Any]],
    superseded: Sequence[str],
    event: Mapping[str, Any],
) -> list[str]:
    """Make a finished block part of the job; it survives this attempt from here on.

    ``files`` are in storage already: ``name bytes sha256 key``. ``superseded`` are names of earlier blocks' files that
    no resume needs any more. Returns the storage keys that nothing refers to now, for the caller to delete. Raises
    NotHeld.
    """
    with connection.transaction():
        ledger.lock(connection, ref)
        before = _blocks_with(connection, ref.job_id, {*superseded}, block)
        connection.execute(
            "INSERT INTO layers (job_id, block, attempt, seconds, report, files) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (job_id, block) DO UPDATE SET attempt = excluded.attempt, seconds = excluded.seconds,"
            " report = excluded.report, files = excluded.files, created_at = excluded.created_at",
            (ref.job_id, block, ref.attempt, seconds, Jsonb(dict(report)), Jsonb([dict(file) for file in files])),
        )
        after = {**before, block: [dict(file) for file in files]}
        obsolete = set(superseded)
        for number, files_of_block in after.items():
            rest = [file for file in files_of_block if file["name"] not in obsolete]
            if len(rest) != len(files_of_block):
                after[number] = rest
                connection.execute(
                    "UPDATE layers SET files = %s WHERE job_id = %s AND block = %s", (Jsonb(rest), ref.job_id, number)
                )
        new = not before.get(block)
        connection.execute(
            transitions.FINISH_BLOCK,
            {"done": block + 1, "blocks": blocks, "weight": NEWEST_WEIGHT, "seconds": seconds, "job_id": ref.job_id},
        )
        if new:
            connection.execute(
                "UPDATE attempts SET blocks_done = blocks_done + 1 WHERE job_id = %s AND attempt = %s",
                (ref.job_id, ref.attempt),
            )
            ledger.append_event(connection, ref.job_id, EventType.BLOCK, event)
        reach("layer.before_commit")
        obsolete_keys = _keys(before) - _keys(after)
        # A file is stored by its content: another block may have the same.
        return sorted(key for key in obsolete_keys if not _is_named(connection, ref.job_id, key))


def record_resumed(connection: Connection, ref: AttemptRef, *, block: int, blocks: int) -> None:
    """``block`` was found finished by an earlier attempt and was not computed again."""
    with connection.transaction():
        ledger.lock(connection, ref)
        connection.execute(
            "UPDATE attempts SET resumed_from_block = %s WHERE job_id = %s AND attempt = %s",
            (block + 1, ref.job_id, ref.attempt),
        )
        connection.execute(transitions.SKIP_BLOCK, {"done": block + 1, "blocks": blocks, "job_id": ref.job_id})


def block_files(connection: Connection, job_id: str) -> list[dict[str, Any]]:
    """``name bytes sha256 key`` of every file that finished blocks left for a resume, in the order of the blocks."""
    return [file for _, files in sorted(_files_by_block(connection, job_id).items()) for file in files]


def files_to_take_over(connection: Connection, job_id: str) -> list[dict[str, Any]]:
    """What other jobs left that this one may take over, as ``block_files`` has it: of the job it was forked from
    everything, of the oldest of its comparison the captured inputs. The library verifies what fits."""
    sources = connection.execute(
        "SELECT other.id, other.id = mine.forked_from AS forked FROM jobs mine JOIN jobs other"
        " ON other.tenant = mine.tenant AND other.id <> mine.id"
        " AND (other.id = mine.forked_from OR other.comparison_id = mine.comparison_id)"
        " WHERE mine.id = %s AND EXISTS (SELECT FROM layers WHERE job_id = other.id AND files <> '[]'::jsonb)"
        " ORDER BY (other.id = mine.forked_from) DESC NULLS LAST, other.created_at, other.id LIMIT 1",
        (job_id,),
    ).fetchall()
    return [
        file
        for source in sources
        for file in block_files(connection, source["id"])
        if source["forked"] or file["name"] in CAPTURED_INPUTS_FILES
    ]


def _blocks_with(connection: Connection, job_id: str, names: set[str], block: int) -> dict[int, list[dict[str, Any]]]:
    """The files of ``block``, and of the blocks that have one of ``names``: nearly always of the last few, so that a
    model of ten thousand blocks costs no more than one of ten."""
    recent = _files_by_block(connection, job_id, newest=RECENT)
    if not names <= {file["name"] for files in recent.values() for file in files}:
        return _files_by_block(connection, job_id)
    return recent | _files_by_block(connection, job_id, only=block)


def _is_named(connection: Connection, job_id: str, key: str) -> bool:
    row = connection.execute(
        "SELECT 1 FROM layers WHERE job_id = %s AND files @> %s LIMIT 1", (job_id, Jsonb([{"key": key}]))
    ).fetchone()
    return row is not None


def _files_by_block(
    connection: Connection, job_id: str, *, newest: int | None = None, only: int | None = None
) -> dict[int, list[dict[str, Any]]]:
    rows = connection.execute(
        "SELECT block, files FROM layers WHERE job_id = %(job)s AND coalesce(block = %(only)s, true)"
        " ORDER BY block DESC LIMIT %(newest)s",
        {"job": job_id, "only": only, "newest": newest},
    ).fetchall()
    return {row["block"]: row["files"] for row in reversed(rows)}


def _keys(files: Mapping[int, Sequence[Mapping[str, Any]]]) -> set[str]:
    return {file["key"] for block in files.values() for file in block}
