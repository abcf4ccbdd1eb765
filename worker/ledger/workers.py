"""Which workers are alive, for display. A lease, not these rows, says who holds a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from core.contract.versions import UNDERSTOOD
from worker.ledger.connection import Connection


@dataclass(frozen=True)
class Capacity:
    """``memory``: bytes of the machine or of its container; ``device_memory``: of the GPU; None where nobody says."""

    memory: int | None
    device_memory: int | None
    cores: int | None


UNKNOWN = Capacity(None, None, None)


def record_worker(
    connection: Connection,
    *,
    worker: str,
    host: str,
    device: str,
    has: Capacity = UNKNOWN,
    free_disk: int | None = None,
    begins: bool = False,
) -> None:
    """Write that this worker is alive now, by the database's clock. ``begins``: the process has just started, so the
    state that an earlier one of this name left is reset."""
    connection.execute(
        "INSERT INTO workers (id, host, device, memory_bytes, device_memory_bytes, cores, spec_version,"
        " free_disk_bytes)"
        " VALUES (%(id)s, %(host)s, %(device)s, %(memory)s, %(device_memory)s, %(cores)s, %(understood)s,"
        " %(free_disk)s)"
        " ON CONFLICT (id) DO UPDATE SET host = excluded.host, device = excluded.device,"
        " memory_bytes = excluded.memory_bytes, device_memory_bytes = excluded.device_memory_bytes,"
        " cores = excluded.cores, spec_version = excluded.spec_version,"
        " free_disk_bytes = excluded.free_disk_bytes, seen_at = clock_timestamp(),"
        " state = CASE WHEN %(begins)s THEN 'ready' ELSE workers.state END,"
        " state_reason = CASE WHEN %(begins)s THEN NULL ELSE workers.state_reason END",
        {
            "id": worker,
            "host": host,
            "device": device,
            "understood": UNDERSTOOD,
            "begins": begins,
            "free_disk": free_disk,
            **asdict(has),
        },
    )


def set_state(connection: Connection, *, worker: str, state: str, reason: str | None) -> None:
    """``stopped``: it takes no job; ``resting``: not those of some tenants; ``ready``."""
    connection.execute("UPDATE workers SET state = %s, state_reason = %s WHERE id = %s", (state, reason, worker))


def count_recovered_elsewhere(connection: Connection, *, worker: str, jobs: Sequence[str]) -> int:
    """How many of ``jobs`` made progress on another worker after this one had failed them."""
    row = connection.execute(
        "SELECT count(DISTINCT job_id) AS jobs FROM attempts WHERE job_id = ANY(%(jobs)s) AND worker <> %(worker)s"
        " AND (blocks_done > 0 OR outcome = 'succeeded') AND attempt > (SELECT max(attempt) FROM attempts AS here"
        "  WHERE here.job_id = attempts.job_id AND here.worker = %(worker)s)",
        {"jobs": list(jobs), "worker": worker},
    ).fetchone()
    return row["jobs"] if row is not None else 0


def remove_worker(connection: Connection, *, worker: str) -> None:
    """Remove a worker that has ended."""
    connection.execute("DELETE FROM workers WHERE id = %s", (worker,))
