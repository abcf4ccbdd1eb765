"""How the streams of a sensitivity measurement get from one stack of blocks to the next.

Behind the last block of a stack every stream crosses over by itself, as it does in the walk (``crossing.py``), whose
code runs here in a scratch directory. The full-precision stream goes by the name that it takes for the default one.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from quant_experts.calibration.captured_inputs import Call, Calls, Stream
from quant_experts.model.blueprint import Blueprint, around_blocks, empty, fill
from quant_experts.model.families.stack import Stack
from quant_experts.model.groups import GroupPlan
from quant_experts.model.tensor_file import write_tensors
from quant_experts.progress import ShouldStop
from quant_experts.walk.resume_files import chain_file
from quant_experts.walk.stack_transition import CrossingWriter, to_the_next_stack
from quant_experts.walk.state_file import StateFile

FULL: Stream = "quantized"
"""The stream of the full-precision model, under the name of calls' default stream."""


def by_stack(plans: Sequence[Sequence[GroupPlan]]) -> list[list[Sequence[GroupPlan]]]:
    """The blocks of each stack that is walked, with what lies behind them."""
    return [list(blocks) for _, blocks in itertools.groupby(plans, key=lambda block: block[0].stack)]


def taken_apart(
    stack: Sequence[Sequence[GroupPlan]],
) -> tuple[list[Sequence[GroupPlan]], Sequence[GroupPlan]]:
    """The blocks of a stack, and what lies behind them."""
    return [block for block in stack if block[0].index is not None], (stack[-1] if stack[-1][0].index is None else ())


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Empty at first, and gone afterwards."""
    shutil.rmtree(path, ignore_errors=True)
    (path / chain_file(0)).parent.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def around(blueprint: Blueprint, stack: Stack) -> Iterator[None]:
    """What every forward of the stack needs; of the last one it is in memory all the time."""
    names = [] if stack == blueprint.manifest.decoder else around_blocks(blueprint, stack)
    for name in names:
        fill(blueprint, name)
    try:
        yield
    finally:
        for name in names:
            empty(blueprint, name)


def is_read_at_the_border(block: GroupPlan, last: GroupPlan, config: Any) -> bool:
    """Whether a crossing asks for the states behind the block of ``block``. ``last``: a plan of the stack's last
    block; ``config``: the model's."""
    return block.index == last.index or block.index in last.stack.read_again(config)


def keep_states(
    directory: Path, number: int, states: StateFile, streams: Mapping[str, bool], rows: Sequence[Call]
) -> None:
    """Leave the states behind the walked block ``number`` where a crossing looks for them. ``streams``: each with
    whether it has left the full-precision one already."""
    kept = [
        (f"{stream}.{call.index}", states.read(stream if has_left else FULL, call))
        for stream, has_left in streams.items()
        for call in rows
    ]
    layout = {name: (state.dtype, tuple(state.shape)) for name, state in kept}
    write_tensors(directory / chain_file(number), layout, kept)


def cross_over(
    blueprint: Blueprint,
    last: GroupPlan,
    behind: Sequence[GroupPlan],
    following: GroupPlan,
    calls: Calls,
    streams: Sequence[str],
    directory: Path,
    *,
    rounded: Callable[[GroupPlan], AbstractContextManager[None]],
    watched: Callable[[], AbstractContextManager[None]],
    should_stop: ShouldStop,
) -> Calls:
    """The calls of the stack of ``following``, for all ``streams`` and those of the groups ``behind``, which begin
    here. ``last``: a plan of the block whose states were kept; ``rounded``: one group rounded while it is open;
    ``watched``: open while the full-precision stream crosses.
    """
    writer = CrossingWriter(directory, following.block, calls)
    try:
        with to_the_next_stack(blueprint, last, following.stack, calls, directory) as cross:
            for stream in streams:
                writer.take(calls.rows, stream, cross, should_stop)
            for plan in behind:
                with rounded(plan):
                    writer.take(calls.rows, plan.name, lambda call, stream: cross(call, FULL), should_stop)
            with watched(), torch.no_grad():
                writer.take(calls.rows, FULL, cross, should_stop)
        return writer.finish("")
    finally:
        writer.discard()
