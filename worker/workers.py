"""Who is alive, for people to look at. A lease, not these rows, says who holds a job."""

from __future__ import annotations

from dataclasses import asdict

from worker.device import UNKNOWN, Capacity
from worker.ledger import Connection


def seen(connection: Connection, *, worker: str, host: str, device: str, has: Capacity = UNKNOWN) -> None:
    """This worker lives now, on the database's clock."""
    connection.execute(
        "INSERT INTO workers (id, host, device, memory_bytes, device_memory_bytes, cores)"
        " VALUES (%(id)s, %(host)s, %(device)s, %(memory)s, %(device_memory)s, %(cores)s) ON CONFLICT (id) DO UPDATE"
        " SET host = excluded.host, device = excluded.device, memory_bytes = excluded.memory_bytes,"
        " device_memory_bytes = excluded.device_memory_bytes, cores = excluded.cores, seen_at = clock_timestamp()",
        {"id": worker, "host": host, "device": device, **asdict(has)},
    )


def gone(connection: Connection, *, worker: str) -> None:
    connection.execute("DELETE FROM workers WHERE id = %s", (worker,))
