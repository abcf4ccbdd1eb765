"""Run the calibration rows through one walked block, stream by stream, and store what the walk continues from.

A block of a stack turns hidden states into hidden states. The part behind the blocks of a stack turns them into the
inputs of the next stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow, Stream
from quant_experts.model.block_runner import open_block_runner
from quant_experts.model.blueprint import Blueprint, loaded, modules_around_blocks
from quant_experts.model.groups import GroupPlan
from quant_experts.model.run_context import RunContext
from quant_experts.progress import WrittenFile, stop_if
from quant_experts.walk.baseline import is_baseline
from quant_experts.walk.file_lifetimes import FileLifetimes
from quant_experts.walk.group_settings import GroupSettings
from quant_experts.walk.resume_files import HiddenStates, StatesWriter
from quant_experts.walk.stack_transition import NextInputsWriter, Transition, stack_transition, stored_stack_inputs

RunRow = Callable[[CapturedRow, Stream], Tensor]
"""A row in one of its streams → the block's output, on the CPU."""


@dataclass(frozen=True)
class Walk:
    """What stays the same from block to block."""

    context: RunContext
    settings: GroupSettings
    lifetimes: FileLifetimes

    def rows_by_stream(self, inputs: CapturedInputs) -> dict[Stream, Sequence[CapturedRow]]:
        """Stream → the rows that travel in it."""
        rows: dict[Stream, Sequence[CapturedRow]] = {"full": (*inputs.held_out, *inputs.variants)}
        if not is_baseline(self.settings.spec):
            rows["baseline"] = inputs.held_out
        return {**rows, "quantized": (*inputs.rows, *inputs.variants)}


def stack_inputs(walk: Walk, number: int, inputs: CapturedInputs) -> CapturedInputs:
    """The inputs of the stack of block ``number``: ``inputs``, what an earlier run stored, or captured now."""
    context = walk.context
    first = walk.lifetimes.first_of[number]
    there = stored_stack_inputs(context.work, first, inputs, context.fingerprint)
    if there is not None:
        return there
    last, next_stack = context.plans[first - 1][0], context.plans[number][0].stack
    assert last.index is not None, "the part behind a stack stores the next stack's inputs itself"
    writer = NextInputsWriter(context.work, first, inputs)
    try:
        with (
            loaded(context.blueprint, *modules_around_blocks(context.blueprint, last.stack)),
            stack_transition(context.blueprint, last, next_stack, inputs, context.work) as transition,
        ):
            for stream, rows in walk.rows_by_stream(inputs).items():
                writer.take(rows, stream, transition, context.should_stop)
            return writer.finish(context.fingerprint)
    finally:
        writer.discard()


class BlockPass(Protocol):
    """One walked block, while rows run through it."""

    inputs: CapturedInputs
    """Of the rows that reach the block."""

    def open(self) -> AbstractContextManager[Callable[[CapturedRow, Stream], Any]]:
        """Yields what runs one row, with the weights that the block holds at that moment."""

    def take(self, stream: Stream, rows: Sequence[CapturedRow], run_row: Callable[[CapturedRow, Stream], Any]) -> None:
        """Run the rows and store what comes out."""

    def finish(self, run_row: Callable[[CapturedRow, Stream], Any]) -> tuple[WrittenFile, ...]:
        """Run the quantized stream and make all outputs durable."""


def open_block_pass(walk: Walk, number: int, inputs: CapturedInputs) -> BlockPass:
    """The pass of block ``number``. ``inputs``: of its stack."""
    if walk.context.plans[number][0].index is None:
        return _TransitionPass(walk, number, inputs)
    return _StackBlockPass(walk, number, inputs.running)


class _StackBlockPass:
    """Hidden states in, hidden states out. Each state is on disk before the next is computed."""

    def __init__(self, walk: Walk, number: int, inputs: CapturedInputs) -> None:
        self._context, self._number, self.inputs = walk.context, number, inputs
        self._rows = walk.rows_by_stream(inputs)
        if number + 1 == len(walk.context.plans):  # behind the last block nothing reads the rows that were fitted on
            self._rows["quantized"] = (*inputs.held_out, *inputs.variants)

    @contextmanager
    def open(self) -> Iterator[RunRow]:
        context = self._context
        hidden = HiddenStates(context.work, self.inputs, self._number)
        self._writer = StatesWriter(context.work, self._number, self.inputs, self._rows)
        try:
            with _running_block(context.blueprint, context.plans[self._number][0], self.inputs, hidden) as run_row:
                yield run_row
        finally:
            self._writer.discard()

    def take(self, stream: Stream, rows: Sequence[CapturedRow], run_row: RunRow) -> None:
        for row in rows:
            stop_if(self._context.should_stop)
            self._writer.add(stream, row, run_row(row, stream))

    def finish(self, run_row: RunRow) -> tuple[WrittenFile, ...]:
        self.take("quantized", self._rows["quantized"], run_row)
        return (self._writer.finish(),)


class _TransitionPass:
    """The part behind the blocks of a stack: hidden states in, inputs of the next stack out."""

    def __init__(self, walk: Walk, number: int, inputs: CapturedInputs) -> None:
        self._context, self._number, self.inputs = walk.context, number, inputs

    @contextmanager
    def open(self) -> Iterator[Transition]:
        context, number = self._context, self._number
        last, next_stack = context.plans[number - 1][0], context.plans[number + 1][0].stack
        self._writer = NextInputsWriter(context.work, number + 1, self.inputs)
        try:
            with stack_transition(context.blueprint, last, next_stack, self.inputs, context.work) as transition:
                yield transition
        finally:
            self._writer.discard()

    def take(self, stream: Stream, rows: Sequence[CapturedRow], run_row: Transition) -> None:
        self._writer.take(rows, stream, run_row, self._context.should_stop)

    def finish(self, run_row: Transition) -> tuple[WrittenFile, ...]:
        self.take("quantized", (*self.inputs.rows, *self.inputs.variants), run_row)
        return self._writer.finish(self._context.fingerprint).files


@contextmanager
def _running_block(
    blueprint: Blueprint, plan: GroupPlan, inputs: CapturedInputs, hidden: HiddenStates
) -> Iterator[RunRow]:
    """``plan``: any of the block's. ``hidden``: the block's inputs."""
    assert plan.index is not None, "a block, not the part behind its stack"
    device = blueprint.device
    with open_block_runner(blueprint.module(plan.stack), plan.index, plan.stack) as runner:

        def run_row(row: CapturedRow, stream: Stream) -> Tensor:
            state = hidden.read(stream, row).to(device)
            return runner.run(inputs.arguments(row, device, stream), state).cpu()

        yield run_row
