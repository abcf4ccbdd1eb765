"""Walk a model block by block, so that memory is one block and not one model (method.md, section 7).

For each block: read it, run it in full precision to observe its groups, fit them, run it rounded to nearest for the
baseline, put the quantized layers in place, run it again for the next block's inputs, write everything down, forget it.
Stack by stack: behind the last block of one the rows cross over to the next (``crossing.py``); what the model has there
is one block more, whose outputs are the next stack's calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import Calls
from quant_experts.checkpoint.layout import install_group
from quant_experts.crash_points import reach
from quant_experts.errors import Stopped
from quant_experts.forward.modeling_quant_experts import dequantized_weights
from quant_experts.model.blueprint import Blueprint, around_blocks, empty, fill
from quant_experts.model.groups import GroupPlan, walked_modules
from quant_experts.model.tensor_file import write_tensors
from quant_experts.progress import BlockFinished, GroupFitted, OnEvent, ShouldStop, WrittenFile
from quant_experts.report.data import BlockReport
from quant_experts.walk.baseline import is_baseline, rounded_to_nearest
from quant_experts.walk.block_pass import Walk, calls_for, passage_of
from quant_experts.walk.file_lifetimes import Route
from quant_experts.walk.fit_in_block import fit_in_block
from quant_experts.walk.group_settings import Treatment
from quant_experts.walk.observe import observe_block
from quant_experts.walk.resume_files import FinishedBlock, block_file, commit_block, finished_prefix
from quant_experts.walk.stack_transition import calls_at


@dataclass
class _Clock:
    """Seconds per phase of one block."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)

    @property
    def total(self) -> float:
        return round(time.monotonic() - self.started, 3)


def walk(
    blueprint: Blueprint,
    plans: Sequence[Sequence[GroupPlan]],
    calls: Calls,
    treatment: Treatment,
    *,
    work: Path,
    fingerprint: str,
    on_event: OnEvent,
    should_stop: ShouldStop,
    keep_superseded: bool = False,
) -> list[FinishedBlock]:
    """Quantize every block that ``work`` does not hold finished; all of them, in order. ``calls``: of the first stack.

    Emits BlockFinished for each, and GroupFitted for each group that is fitted now. When ``on_event`` returns from a
    BlockFinished its ``superseded`` files are deleted, unless ``keep_superseded`` leaves that to a caller who reads
    them in his own time.
    Raises Stopped when ``should_stop`` says so, NumericalFailure and InvalidModel naming what failed.
    """
    route = Route.of(plans, blueprint.model.config)
    finished = finished_prefix(work, route.states, fingerprint)
    for block in finished:
        # What was superseded since is gone, and no resume will ask for it.
        there = tuple(file for file in block.files if (work / file.name).is_file())
        on_event(_event(replace(block, files=there), len(plans), superseded=(), resumed=True))
    walked = Walk(blueprint, plans, route, treatment, work, fingerprint, on_event, should_stop)
    for number in range(len(finished), len(plans)):
        if should_stop():
            raise Stopped(f"stopped before block {number}; a later run goes on from there")
        with _in_memory(blueprint, plans, number):
            calls = calls_for(walked, number, calls)
            block = _walk_block(walked, number, calls)
        finished.append(block)
        reach("block.finished")
        superseded = route.superseded(work, number)
        on_event(_event(block, len(plans), superseded=superseded, resumed=False))
        for name in () if keep_superseded else superseded:
            (work / name).unlink(missing_ok=True)
    return finished


def calls_behind(
    plans: Sequence[Sequence[GroupPlan]], calls: Calls, work: Path, fingerprint: str, blueprint: Blueprint
) -> Calls:
    """The calls of the last stack, after the walk. ``calls``: of the first."""
    first = Route.of(plans, blueprint.model.config).first_of[-1]
    found = calls_at(work, first, calls, fingerprint)
    assert found is not None, "the walk has left them"
    return found


@contextmanager
def _in_memory(blueprint: Blueprint, plans: Sequence[Sequence[GroupPlan]], number: int) -> Iterator[None]:
    """What every forward of the block's stack needs, where the walk has several; else it is there all the time."""
    stack = plans[number][0].stack
    names = [] if stack == plans[-1][0].stack else around_blocks(blueprint, stack)
    for name in names:
        fill(blueprint, name)
    try:
        yield
    finally:
        for name in names:
            empty(blueprint, name)


def _walk_block(walk: Walk, number: int, calls: Calls) -> FinishedBlock:
    blueprint, plans, clock = walk.blueprint, walk.plans[number], _Clock()
    stack, index, part = (None, None, None) if walk.route.is_single else _place(plans[0])
    running = calls.running
    passage = passage_of(walk, number, calls)
    with clock.phase("read"):
        for name in walked_modules(plans):
            fill(blueprint, name)
    with passage.open() as passing:
        with clock.phase("observe"):
            observed = observe_block(blueprint, plans, running, passing, walk.treatment.spec, walk.should_stop)
            passage.take("full", (*passage.calls.held_out, *passage.calls.variants), passing)
        groups = []
        for plan in plans:
            with clock.phase("fit"):
                groups.append(fit_in_block(blueprint, plan, observed.pop(plan.name), walk.treatment))
            walk.on_event(GroupFitted(number, len(walk.plans), groups[-1].report, stack, index, part))
            if walk.should_stop():
                raise Stopped(f"stopped inside block {number}; a later run begins it anew")
        entries = [group.entry for group in groups]
        tensors = _block_tensors(blueprint, plans)
        if not is_baseline(walk.treatment.spec):
            with clock.phase("baseline"), rounded_to_nearest(blueprint, plans, entries):
                passage.take("baseline", passage.calls.held_out, passing)
        with clock.phase("forward"):
            for group in groups:
                install_group(blueprint.model, group.entry, group.tensors)
                tensors.update(group.tensors)
            with _dequantized(blueprint, plans):
                states = passage.finish(passing)
    with clock.phase("write"):
        reach("chain.written")
        file = _write_block(walk.work, number, tensors)
        reach("block.written")
    _forget(blueprint, plans)
    report = BlockReport(
        block=number,
        stack=stack,
        index=index,
        part=part,
        seconds=clock.total,
        seconds_by_phase=dict(clock.seconds),
        groups=[group.report for group in groups],
    )
    return commit_block(
        walk.work,
        report=report,
        groups=entries,
        bits=(sum(group.bits[0] for group in groups), sum(group.bits[1] for group in groups)),
        files=(file, *states, *_calls_that_come_with(walk, number, calls)),
        fingerprint=walk.fingerprint,
    )


def _place(plan: GroupPlan) -> tuple[str, int | None, str | None]:
    """Stack, number in it, and what it is that lies behind its blocks."""
    return plan.stack.name, plan.index, plan.stack.part if plan.index is None else None


def _calls_that_come_with(walk: Walk, number: int, calls: Calls) -> tuple[WrittenFile, ...]:
    """The first block of a stack brings its calls, unless what lies before it has done so."""
    brought = number > 0 and walk.plans[number - 1][0].index is None
    return calls.files if number == calls.first and not brought else ()


def _block_tensors(blueprint: Blueprint, plans: Sequence[GroupPlan]) -> dict[str, Tensor]:
    """What stays as it is in the block: norms, biases. On the CPU, under in-memory names."""
    replaced = {f"{plan.parent}.{layer}.weight" for plan in plans for layer in plan.layers}
    names = [name for module in walked_modules(plans) for name in blueprint.weights.names_under(module)]
    kept = (name for name in names if name not in replaced)
    return {name: blueprint.model.get_parameter_or_buffer(name).detach().cpu() for name in kept}


@contextmanager
def _dequantized(blueprint: Blueprint, plans: Sequence[GroupPlan]) -> Iterator[None]:
    with ExitStack() as opened:
        for name in walked_modules(plans):
            opened.enter_context(dequantized_weights(blueprint.model.get_submodule(name)))
        yield


def _write_block(work: Path, number: int, tensors: dict[str, Tensor]) -> WrittenFile:
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(tensors.items())}
    written = write_tensors(work / block_file(number), layout, sorted(tensors.items()))
    return WrittenFile(block_file(number), written.bytes, written.sha256)


def _forget(blueprint: Blueprint, plans: Sequence[GroupPlan]) -> None:
    """Drop the block's tensors, the quantized ones included."""
    for name in walked_modules(plans):
        empty(blueprint, name)
    if blueprint.device.type == "cuda":
        torch.cuda.empty_cache()


def _event(block: FinishedBlock, blocks: int, *, superseded: tuple[str, ...], resumed: bool) -> BlockFinished:
    return BlockFinished(
        block=block.block,
        blocks=blocks,
        seconds=block.report.seconds,
        seconds_by_phase=block.report.seconds_by_phase,
        groups=tuple(block.report.groups),
        files=block.files,
        superseded=superseded,
        resumed=resumed,
        stack=block.report.stack,
        index=block.report.index,
        part=block.report.part,
    )
