"""Take the streams of a sensitivity measurement from one stack of blocks to the next.

The streams cross as they do in the walk (``walk/stack_transition.py``), whose code runs here in a scratch directory.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow, Stream
from quant_experts.model.blueprint import Blueprint, loaded, modules_around_blocks
from quant_experts.model.families.stack import Stack
from quant_experts.model.groups import GroupPlan
from quant_experts.model.run_context import RunContext
from quant_experts.model.tensor_file import write_tensors
from quant_experts.walk.resume_files import states_file
from quant_experts.walk.stack_transition import NextInputsWriter, stack_transition
from quant_experts.walk.state_file import StateFile

FULL: Stream = "quantized"
"""The full-precision stream. It bears the name of the default stream, for which captured inputs have no prefix."""


def by_stack(plans: Sequence[Sequence[GroupPlan]]) -> list[list[Sequence[GroupPlan]]]:
    """The walked blocks of each stack, with the part behind them."""
    return [list(blocks) for _, blocks in itertools.groupby(plans, key=lambda block: block[0].stack)]


def split_stack(stack: Sequence[Sequence[GroupPlan]]) -> tuple[list[Sequence[GroupPlan]], Sequence[GroupPlan]]:
    """The blocks of a stack, and the groups behind them."""
    return [block for block in stack if block[0].index is not None], (stack[-1] if stack[-1][0].index is None else ())


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """An empty directory that is removed when this closes."""
    shutil.rmtree(path, ignore_errors=True)
    (path / states_file(0)).parent.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def stack_loaded(blueprint: Blueprint, stack: Stack) -> Iterator[None]:
    """Load what every forward of the stack needs. For the last stack it is in memory all the time."""
    is_last = stack == blueprint.manifest.decoder
    with loaded(blueprint, *([] if is_last else modules_around_blocks(blueprint, stack))):
        yield


def is_read_by_transition(block: GroupPlan, last: GroupPlan, config: Any) -> bool:
    """Whether a transition reads the states behind the block of ``block``. ``last``: a plan of the stack's last block;
    ``config``: the model's."""
    return block.index == last.index or block.index in last.stack.read_again(config)


def write_states(
    directory: Path, number: int, states: StateFile, streams: Mapping[str, bool], rows: Sequence[CapturedRow]
) -> None:
    """Store the states behind the walked block ``number`` where a transition reads them.

    ``streams``: stream → whether it has left the full-precision stream already.
    """
    streams_there = [
        (f"{stream}.{row.index}", states.read(stream if has_left else FULL, row))
        for stream, has_left in streams.items()
        for row in rows
    ]
    layout = {name: (state.dtype, tuple(state.shape)) for name, state in streams_there}
    write_tensors(directory / states_file(number), layout, streams_there)


def run_transition(
    context: RunContext,
    last: GroupPlan,
    next_group: GroupPlan,
    inputs: CapturedInputs,
    *,
    streams: Sequence[str] = (),
    behind: Sequence[GroupPlan] = (),
    rounding_of: Callable[[GroupPlan], AbstractContextManager[None]] = lambda plan: nullcontext(),
    observation: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> CapturedInputs:
    """The inputs of the stack of ``next_group``, for all ``streams`` and for the groups ``behind`` the stack, whose
    streams begin here.

    ``context.work``: the scratch directory. ``last``: a plan of the block whose states were stored. ``rounding_of``:
    rounds one group while it is open. ``observation``: open while the full-precision stream crosses.
    """
    writer = NextInputsWriter(context.work, next_group.block, inputs)
    try:
        with stack_transition(context.blueprint, last, next_group.stack, inputs, context.work) as run_row:
            for stream in streams:
                writer.take(inputs.rows, stream, run_row, context.should_stop)
            for plan in behind:
                with rounding_of(plan):
                    writer.take(inputs.rows, plan.name, lambda row, stream: run_row(row, FULL), context.should_stop)
            with observation(), torch.no_grad():
                writer.take(inputs.rows, FULL, run_row, context.should_stop)
        return writer.finish("")
    finally:
        writer.discard()
