"""What the last stack of blocks is called with in the full-precision model, before the walk has been there.

Block by block as everywhere, on a few rows, in a scratch directory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from quant_experts.calibration.captured_inputs import Call, Calls
from quant_experts.model.block_runner import block_glue
from quant_experts.model.blueprint import Blueprint, empty, fill
from quant_experts.model.groups import GroupPlan
from quant_experts.progress import ShouldStop, stop_if
from quant_experts.sensitivity.border import (
    FULL,
    around,
    by_stack,
    cross_over,
    is_read_at_the_border,
    keep_states,
    scratch_directory,
    taken_apart,
)
from quant_experts.walk.state_file import StateFile, temporary_states

SCRATCH, STATES = ".last-stack", "states"


@contextmanager
@torch.no_grad()
def calls_of_the_last_stack(
    blueprint: Blueprint, plans: Sequence[Sequence[GroupPlan]], calls: Calls, work: Path, should_stop: ShouldStop
) -> Iterator[Calls]:
    """Of the rows of ``calls``, which are those of the first stack; on disk while this is open.

    Raises Stopped when ``should_stop`` says so, NumericalFailure naming a row on which the model overflows.
    """
    with scratch_directory(work / SCRATCH) as directory:
        for stack, following in itertools.pairwise(by_stack(plans)):
            blocks, _ = taken_apart(stack)
            running = calls.running.rows
            with (
                around(blueprint, stack[0][0].stack),
                temporary_states(directory / STATES, (FULL,), calls, running) as states,
            ):
                for call in running:
                    states.write(FULL, call, calls.embeddings(call))
                for block in blocks:
                    _advance(blueprint, block[0], calls, running, states, should_stop)
                    if is_read_at_the_border(block[0], blocks[-1][0], blueprint.model.config):
                        keep_states(directory, block[0].block, states, {FULL: True}, running)
                calls = cross_over(
                    blueprint,
                    blocks[-1][0],
                    (),
                    following[0][0],
                    calls,
                    (),
                    directory,
                    rounded=lambda plan: nullcontext(),
                    watched=nullcontext,
                    should_stop=should_stop,
                )
        yield calls


def _advance(
    blueprint: Blueprint,
    first: GroupPlan,
    calls: Calls,
    rows: Sequence[Call],
    states: StateFile,
    should_stop: ShouldStop,
) -> None:
    """Take the rows through the block of which ``first`` is a plan."""
    assert first.index is not None, "a block, not what lies behind its stack"
    prefix = first.stack.block(first.index)
    fill(blueprint, prefix)
    try:
        with block_glue(blueprint.module(first.stack), first.index, first.stack) as glue:
            for call in rows:
                stop_if(should_stop)
                state = states.read(FULL, call).to(blueprint.device)
                states.write(FULL, call, glue.run(calls.arguments(call, blueprint.device), state).cpu())
    finally:
        empty(blueprint, prefix)
