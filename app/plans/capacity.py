"""Whether a job fits the live workers."""

from __future__ import annotations

from collections.abc import Sequence

from app.plans.queries import kind_of
from app.plans.schemas import WorkerFit
from core.ledger.placement import JobNeeds, Misfit, WorkerResources, misfit
from core.ledger.tables import Worker
from quant_experts.planning.errors import Refusal
from quant_experts.planning.number_text import size_text
from quant_experts.planning.plan import Plan


def fits_of(workers: Sequence[Worker], plan: Plan | None, device: str | None) -> list[WorkerFit]:
    """One entry per kind of worker. ``device``: the class of device that the job asks for."""
    kinds: dict[tuple[str, int | None, int | None, str | None], WorkerFit] = {}
    for worker in workers:
        fits, reason = _fits(worker, plan, device)
        kind = (worker.device, worker.memory_bytes, worker.device_memory_bytes, reason)
        if kind not in kinds:
            kinds[kind] = WorkerFit(
                device=worker.device,
                workers=0,
                memory_bytes=worker.memory_bytes,
                device_memory_bytes=worker.device_memory_bytes,
                fits=fits,
                reason=reason,
            )
        kinds[kind].workers += 1
    return list(kinds.values())


def memory_refusal(workers: Sequence[Worker], plan: Plan, device: str | None) -> Refusal | None:
    """A refusal when every live worker of the class has too little memory. Where there is none of the class, or its
    disk is full for now, the job waits."""
    able = [worker for worker in workers if _misfit(worker, plan, device) is not Misfit.DEVICE]
    too_small = [worker for worker in able if _misfit(worker, plan, device) in (Misfit.MEMORY, Misfit.DEVICE_MEMORY)]
    if not able or len(too_small) < len(able):
        return None
    _, reason = _fits(too_small[0], plan, device)
    message = f"no worker that is alive is large enough: {reason}"
    memory, evaluation = plan.placements[kind_of(too_small[0].device)].memory, plan.recipe.evaluation
    if memory.phase == "generating" and evaluation is not None and evaluation.original:
        message += "; the evaluation holds the whole original: with original false the checkpoint alone is scored"
        return Refusal("insufficient_memory", message, "/evaluation/original")
    return Refusal("insufficient_memory", message)


def _fits(worker: Worker, plan: Plan | None, device: str | None) -> tuple[bool | None, str | None]:
    if plan is None:
        return None, None
    memory = plan.placements[kind_of(worker.device)].memory
    match _misfit(worker, plan, device):
        case Misfit.DEVICE:
            return False, f"the job asks for a device of class {device}, and this is {worker.device}"
        case Misfit.DEVICE_MEMORY:
            what, there = f"{size_text(memory.device)} of device memory ({memory.phase})", worker.device_memory_bytes
        case Misfit.MEMORY:
            what, there = f"{size_text(memory.host)} of memory ({memory.phase})", worker.memory_bytes
        case Misfit.DISK:
            what, there = f"{size_text(plan.disk)} of free disk", worker.free_disk_bytes
        case None if worker.memory_bytes is None:
            return None, "the worker does not say how much memory it has"
        case None:
            return True, None
    return False, f"the job needs {what}, {worker.device} has {size_text(there or 0)}"


def _misfit(worker: Worker, plan: Plan, device: str | None) -> Misfit | None:
    cpu, cuda = plan.placements["cpu"].memory, plan.placements["cuda"].memory
    needs = JobNeeds(device, cpu.host, cuda.host, cuda.device, plan.disk)
    has = WorkerResources(worker.device, worker.memory_bytes, worker.device_memory_bytes, worker.free_disk_bytes)
    return misfit(needs, has)
