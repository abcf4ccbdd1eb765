"""Who is alive, for people to look at. A lease, not these rows, says who holds a job."""

from __future__ import annotations

from worker.ledger import Connection


def seen(connection: Connection, *, worker: str, host: str, device: str) -> None:
    """This worker lives now, on the database's clock."""
    connection.execute(
        "INSERT INTO workers (id, host, device) VALUES (%(id)s, %(host)s, %(device)s) ON CONFLICT (id) DO UPDATE"
        " SET host = excluded.host, device = excluded.device, seen_at = clock_timestamp()",
        {"id": worker, "host": host, "device": device},
    )


def gone(connection: Connection, *, worker: str) -> None:
    connection.execute("DELETE FROM workers WHERE id = %s", (worker,))
