"""Capture what the last stack of blocks receives in the full-precision model, before the walk reaches it.

Block by block, on a few rows, in a scratch directory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow
from quant_experts.model.block_runner import open_block_runner
from quant_experts.model.blueprint import loaded
from quant_experts.model.groups import GroupPlan
from quant_experts.model.run_context import RunContext
from quant_experts.progress import stop_if
from quant_experts.sensitivity.transition import (
    FULL,
    by_stack,
    is_read_by_transition,
    run_transition,
    scratch_directory,
    split_stack,
    stack_loaded,
    write_states,
)
from quant_experts.walk.state_file import StateFile, temporary_states

SCRATCH, STATES = ".last-stack", "states"


@contextmanager
@torch.no_grad()
def last_stack_in_full_precision(context: RunContext, inputs: CapturedInputs) -> Iterator[CapturedInputs]:
    """The inputs of the last stack for the rows of ``inputs``, which are of the first; on disk while this is open.

    Raises Stopped when ``should_stop`` says so, NumericalFailure naming a row on which the model overflows.
    """
    blueprint = context.blueprint
    with scratch_directory(context.work / SCRATCH) as directory:
        scratch = replace(context, work=directory)
        for stack, next_stack in itertools.pairwise(by_stack(context.plans)):
            blocks, _ = split_stack(stack)
            last, rows = blocks[-1][0], inputs.running.rows
            with (
                stack_loaded(blueprint, stack[0][0].stack),
                temporary_states(directory / STATES, (FULL,), inputs, rows) as states,
            ):
                for row in rows:
                    states.write(FULL, row, inputs.embeddings(row))
                for block in blocks:
                    _advance(context, block[0], inputs, rows, states)
                    if is_read_by_transition(block[0], last, blueprint.model.config):
                        write_states(directory, block[0].block, states, {FULL: True}, rows)
                inputs = run_transition(scratch, last, next_stack[0][0], inputs)
        yield inputs


def _advance(
    context: RunContext, plan: GroupPlan, inputs: CapturedInputs, rows: Sequence[CapturedRow], states: StateFile
) -> None:
    """Take the rows through the block of ``plan``."""
    assert plan.index is not None, "a block, not the part behind its stack"
    blueprint = context.blueprint
    with (
        loaded(blueprint, plan.stack.block(plan.index)),
        open_block_runner(blueprint.module(plan.stack), plan.index, plan.stack) as runner,
    ):
        for row in rows:
            stop_if(context.should_stop)
            state = states.read(FULL, row).to(blueprint.device)
            states.write(FULL, row, runner.run(inputs.arguments(row, blueprint.device), state).cpu())
