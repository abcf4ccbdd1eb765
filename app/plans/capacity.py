"""Whether a job fits the live workers."""

from __future__ import annotations

from collections.abc import Sequence

from app.plans.queries import kind_of
from app.plans.schemas import WorkerFit
from core.ledger.tables import Worker
from quant_experts.planning.errors import Refusal
from quant_experts.planning.number_text import size_text
from quant_experts.planning.plan import Plan

ROOM = 0.95
"""Share of a machine's memory that a job may use; the rest is for the system."""


def fits_of(workers: Sequence[Worker], plan: Plan | None) -> list[WorkerFit]:
    """One entry per kind of worker."""
    kinds: dict[tuple[str, int | None, int | None], WorkerFit] = {}
    for worker in workers:
        key = (worker.device, worker.memory_bytes, worker.device_memory_bytes)
        if key not in kinds:
            fits, reason = _fits(worker, plan)
            kinds[key] = WorkerFit(
                device=worker.device,
                workers=0,
                memory_bytes=worker.memory_bytes,
                device_memory_bytes=worker.device_memory_bytes,
                fits=fits,
                reason=reason,
            )
        kinds[key].workers += 1
    return list(kinds.values())


def memory_refusal(fits: Sequence[WorkerFit]) -> Refusal | None:
    """A refusal when every live worker is known to be too small. Without live workers the job waits."""
    if not fits or any(kind.fits is not False for kind in fits):
        return None
    return Refusal("insufficient_memory", f"no worker that is alive is large enough: {fits[0].reason}")


def _fits(worker: Worker, plan: Plan | None) -> tuple[bool | None, str | None]:
    if plan is None:
        return None, None
    memory = plan.placements[kind_of(worker.device)].memory
    needs = (
        (memory.device, worker.device_memory_bytes, "of device memory"),
        (memory.host, worker.memory_bytes, "of memory"),
    )
    for needed, there, what in needs:
        if there is not None and needed > ROOM * there:
            return (
                False,
                f"the job needs {size_text(needed)} {what} ({memory.phase}), {worker.device} has {size_text(there)}",
            )
    if worker.memory_bytes is None:
        return None, "the worker does not say how much memory it has"
    return True, None
