"""Walk a model block by block, so that memory holds one block and not one model (method.md, section 7).

For each block: load it; run it in full precision and observe its groups; fit them; run it rounded to nearest for the
baseline; install the quantized layers; run it again for the next block's inputs; store everything; unload it.
The stacks follow one another: behind the last block of a stack the rows go over to the next
(``stack_transition.py``). The part of the model between two stacks, if it is quantized, is one block more; its outputs
are the next stack's inputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import CapturedInputs
from quant_experts.checkpoint.layout import install_group
from quant_experts.crash_points import reach
from quant_experts.forward.modeling_quant_experts import dequantized_weights
from quant_experts.model.blueprint import Blueprint, load, loaded, modules_around_blocks, unload
from quant_experts.model.groups import GroupPlan, walked_modules
from quant_experts.model.run_context import RunContext
from quant_experts.model.tensor_file import write_tensors
from quant_experts.planning.slices import slices_of
from quant_experts.progress import BlockFinished, GroupFitted, WrittenFile, stop_if
from quant_experts.report.data import BlockReport
from quant_experts.walk.baseline import is_baseline, layers_rounded_to_nearest
from quant_experts.walk.block_pass import BlockPass, Walk, open_block_pass, stack_inputs
from quant_experts.walk.file_lifetimes import FileLifetimes
from quant_experts.walk.fit_in_block import GroupInBlock, fit_in_block
from quant_experts.walk.group_settings import GroupSettings
from quant_experts.walk.observe import observe_block
from quant_experts.walk.resume_files import FinishedBlock, block_file, commit_block, finished_prefix
from quant_experts.walk.stack_transition import stored_stack_inputs


def walk(
    context: RunContext, inputs: CapturedInputs, settings: GroupSettings, *, keep_superseded: bool = False
) -> list[FinishedBlock]:
    """Quantize every block that the work directory does not hold finished; returns all of them, in order.

    ``inputs``: of the first stack. ``context.fingerprint``: of finished blocks, see ``GroupSettings.fingerprint``.
    Emits BlockFinished for each block, and GroupFitted for each group that is fitted now. When ``on_event`` returns
    from a BlockFinished, its ``superseded`` files are deleted; with ``keep_superseded`` the caller deletes them.
    Raises Stopped when ``should_stop`` says so, NumericalFailure and InvalidModel naming what failed.
    """
    plans, work = context.plans, context.work
    lifetimes = FileLifetimes.of(plans, context.blueprint.model.config)
    finished_blocks = finished_prefix(work, lifetimes.states, context.fingerprint)
    for block in finished_blocks:
        # Files that were superseded since are gone, and no resume asks for them.
        present = tuple(file for file in block.files if (work / file.name).is_file())
        context.on_event(_event(replace(block, files=present), len(plans), superseded=(), resumed=True))
    state = Walk(context, settings, lifetimes)
    for number in range(len(finished_blocks), len(plans)):
        stop_if(context.should_stop, f"before block {number}; a later run goes on from there")
        with _stack_loaded(context, number):
            inputs = stack_inputs(state, number, inputs)
            block = _BlockWalk(state, number, inputs).run()
        finished_blocks.append(block)
        reach("block.finished")
        obsolete = lifetimes.superseded(work, number)
        context.on_event(_event(block, len(plans), superseded=obsolete, resumed=False))
        for name in () if keep_superseded else obsolete:
            (work / name).unlink(missing_ok=True)
    return finished_blocks


def last_stack_inputs(context: RunContext, inputs: CapturedInputs) -> CapturedInputs:
    """The inputs of the last stack, after the walk. ``inputs``: of the first."""
    first = FileLifetimes.of(context.plans, context.blueprint.model.config).first_of[-1]
    there = stored_stack_inputs(context.work, first, inputs, context.fingerprint)
    assert there is not None, "the walk has stored them"
    return there


@contextmanager
def _stack_loaded(context: RunContext, number: int) -> Iterator[None]:
    """Load what every forward of the block's stack needs. For the last stack it is in memory all the time."""
    stack = context.plans[number][0].stack
    is_last = stack == context.plans[-1][0].stack
    with loaded(context.blueprint, *([] if is_last else modules_around_blocks(context.blueprint, stack))):
        yield


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


class _BlockWalk:
    """One block, from its weights to its record in the work directory."""

    def __init__(self, walk: Walk, number: int, inputs: CapturedInputs) -> None:
        """``inputs``: of the block's stack."""
        self._walk, self._context, self._settings = walk, walk.context, walk.settings
        self._blueprint, self._plans = walk.context.blueprint, walk.context.plans[number]
        self._number, self._inputs = number, inputs
        self._place = (None, None, None) if walk.lifetimes.is_single else _place(self._plans[0])
        self._clock = _Clock()

    def run(self) -> FinishedBlock:
        with self._clock.phase("read"):
            for name in walked_modules(self._plans):
                load(self._blueprint, name)
        groups, tensors, states = self._quantize(open_block_pass(self._walk, self._number, self._inputs))
        with self._clock.phase("write"):
            reach("chain.written")
            file = _write_block(self._context.work, self._number, tensors)
            reach("block.written")
        _unload_block(self._blueprint, self._plans)
        return self._commit(groups, (file, *states, *self._stack_files()))

    def _quantize(self, block_pass: BlockPass) -> tuple[list[GroupInBlock], dict[str, Tensor], tuple[WrittenFile, ...]]:
        """The fitted groups, all tensors of the block, and the files with what it puts out."""
        rows, spec = block_pass.inputs, self._settings.spec
        with block_pass.open() as run_row:
            with self._clock.phase("observe"):
                block_pass.take("full", (*rows.held_out, *rows.variants), run_row)
            results: dict[str, GroupInBlock] = {}
            for part in slices_of(self._plans):
                with self._clock.phase("observe"):
                    observations = observe_block(self._context, part, self._inputs.running, run_row, spec)
                for plan in part:
                    with self._clock.phase("fit"):
                        group = fit_in_block(self._blueprint, plan, observations.pop(plan.name), self._settings)
                    results[plan.name] = group
                    event = GroupFitted(self._number, len(self._context.plans), group.report, *self._place)
                    self._context.on_event(event)
                    stop_if(self._context.should_stop, f"inside block {self._number}; a later run begins it anew")
            groups = [results[plan.name] for plan in self._plans]
            tensors = _unchanged_tensors(self._blueprint, self._plans)
            if not is_baseline(spec):
                entries = [group.entry for group in groups]
                with (
                    self._clock.phase("baseline"),
                    layers_rounded_to_nearest(self._blueprint, self._plans, entries),
                ):
                    block_pass.take("baseline", rows.held_out, run_row)
            with self._clock.phase("forward"):
                for group in groups:
                    install_group(self._blueprint.model, group.entry, group.tensors)
                    tensors.update(group.tensors)
                with _dequantized(self._blueprint, self._plans):
                    states = block_pass.finish(run_row)
        return groups, tensors, states

    def _stack_files(self) -> tuple[WrittenFile, ...]:
        """The first block of a stack lists the files of the stack's inputs, unless the part before it has done so."""
        plans, number = self._context.plans, self._number
        is_behind = number > 0 and plans[number - 1][0].index is None
        return self._inputs.files if number == self._inputs.first and not is_behind else ()

    def _commit(self, groups: Sequence[GroupInBlock], files: tuple[WrittenFile, ...]) -> FinishedBlock:
        stack, index, part = self._place
        report = BlockReport(
            block=self._number,
            stack=stack,
            index=index,
            part=part,
            seconds=self._clock.total,
            seconds_by_phase=dict(self._clock.seconds),
            groups=[group.report for group in groups],
        )
        return commit_block(
            self._context.work,
            report=report,
            groups=[group.entry for group in groups],
            bits=(sum(group.bits[0] for group in groups), sum(group.bits[1] for group in groups)),
            files=files,
            fingerprint=self._context.fingerprint,
        )


def _place(plan: GroupPlan) -> tuple[str, int | None, str | None]:
    """The stack, the block's number in it, and the name of the part behind its blocks, if the plan belongs to that."""
    return plan.stack.name, plan.index, plan.stack.part if plan.index is None else None


def _unchanged_tensors(blueprint: Blueprint, plans: Sequence[GroupPlan]) -> dict[str, Tensor]:
    """The tensors of the block that no group replaces: norms, biases. On the CPU, under in-memory names."""
    quantized_names = {f"{plan.parent}.{layer}.weight" for plan in plans for layer in plan.layers}
    names = [name for module in walked_modules(plans) for name in blueprint.weights.names_under(module)]
    other_names = (name for name in names if name not in quantized_names)
    return {name: blueprint.model.get_parameter_or_buffer(name).detach().cpu() for name in other_names}


@contextmanager
def _dequantized(blueprint: Blueprint, plans: Sequence[GroupPlan]) -> Iterator[None]:
    with ExitStack() as stack:
        for name in walked_modules(plans):
            stack.enter_context(dequantized_weights(blueprint.model.get_submodule(name)))
        yield


def _write_block(work: Path, number: int, tensors: dict[str, Tensor]) -> WrittenFile:
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(tensors.items())}
    file = write_tensors(work / block_file(number), layout, sorted(tensors.items()))
    return replace(file, name=block_file(number))


def _unload_block(blueprint: Blueprint, plans: Sequence[GroupPlan]) -> None:
    """Drop the block's tensors, the quantized ones included."""
    for name in walked_modules(plans):
        unload(blueprint, name)
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
