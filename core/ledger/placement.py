"""Does a job fit a worker? One SQL condition compares what the job needs with what the worker has."""

from __future__ import annotations

from dataclasses import dataclass

ROOM = 0.95
"""Share of a worker's memory that a job may need; the rest is for the system."""


@dataclass(frozen=True)
class WorkerResources:
    """What a worker has, in bytes; None where it is not known, and then every job fits."""

    device: str
    """Its name; ``cpu``."""
    memory: int | None = None
    device_memory: int | None = None
    free_disk: int | None = None


UNBOUNDED = WorkerResources("cpu")


def fits(job: str, *, device: str, memory: str, device_memory: str, free_disk: str) -> str:
    """The SQL condition that a job fits a worker: ``job`` is a table's name, the others are expressions of what the
    worker has. What is null on either side decides nothing."""
    return f"""(
        CASE {job}.device WHEN 'cpu' THEN {device} = 'cpu' WHEN 'gpu' THEN {device} <> 'cpu'
            ELSE coalesce(position(lower({job}.device) IN lower({device})) > 0, true) END
        AND coalesce({job}.needs_disk <= {free_disk}, true)
        AND CASE WHEN {device} = 'cpu' THEN coalesce({job}.needs_host_cpu <= {ROOM} * {memory}, true)
            ELSE coalesce({job}.needs_host_cuda <= {ROOM} * {memory}, true)
                AND coalesce({job}.needs_device <= {ROOM} * {device_memory}, true) END
    )"""


FITS_HERE = fits(
    "jobs",
    device="%(device)s::text",
    memory="%(memory)s::bigint",
    device_memory="%(device_memory)s::bigint",
    free_disk="%(free_disk)s::bigint",
)


def fits_worker(worker: str, job: str = "jobs") -> str:
    """The same for a row of ``workers``."""
    return fits(
        job,
        device=f"{worker}.device",
        memory=f"{worker}.memory_bytes",
        device_memory=f"{worker}.device_memory_bytes",
        free_disk=f"{worker}.free_disk_bytes",
    )
