"""Does a job fit a worker? ``fits`` compares what the job needs with what the worker has in SQL, for the claim and the
keeper; ``misfit`` does the same in Python, for plans, and says what is missing. A test holds the two together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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


@dataclass(frozen=True)
class JobNeeds:
    """What a job asks for: a class of device, and bytes; None where it is not known or does not matter."""

    device: str | None = None
    host_cpu: int | None = None
    """Memory of the machine, when it runs on a CPU."""
    host_cuda: int | None = None
    """Memory of the machine, when it runs on a GPU."""
    device_memory: int | None = None
    disk: int | None = None


class Misfit(StrEnum):
    """What a worker lacks."""

    DEVICE = "device"
    DEVICE_MEMORY = "device_memory"
    MEMORY = "memory"
    DISK = "disk"


def misfit(needs: JobNeeds, worker: WorkerResources) -> Misfit | None:
    """What the worker lacks for the job first of all; None when the job fits. What is None on either side decides
    nothing."""
    on_cpu = worker.device == "cpu"
    if not _is_of_class(worker.device, needs.device):
        return Misfit.DEVICE
    if not on_cpu and _exceeds(needs.device_memory, worker.device_memory, ROOM):
        return Misfit.DEVICE_MEMORY
    if _exceeds(needs.host_cpu if on_cpu else needs.host_cuda, worker.memory, ROOM):
        return Misfit.MEMORY
    return Misfit.DISK if _exceeds(needs.disk, worker.free_disk, 1.0) else None


def _is_of_class(device: str, device_class: str | None) -> bool:
    if device_class == "cpu":
        return device == "cpu"
    if device_class == "gpu":
        return device != "cpu"
    return device_class is None or device_class.lower() in device.lower()


def _exceeds(need: int | None, there: int | None, share: float) -> bool:
    return need is not None and there is not None and need > share * there


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
