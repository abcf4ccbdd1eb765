"""How far the next-token distribution moves when a single input group is rounded to nearest.

One pass over the blocks, stack by stack (``transition.py``), with one block in memory. Every group has a stream of its
own. The stream leaves the full-precision stream at its group and continues through the later blocks in full precision.
Behind the last block all streams reach the output head.

Cost, for N blocks of G groups: N (1 + G) + G N (N - 1) / 2 block forwards for each row, which is about G N / 2 forwards
of the model: 56 for 28 blocks of 4 groups, on ``rows.ROWS`` rows. Disk: one hidden state per group and row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow
from quant_experts.errors import NumericalFailure
from quant_experts.evaluation.next_token import text_positions
from quant_experts.model.block_runner import BlockRunner, hooked, open_block_runner
from quant_experts.model.blueprint import Blueprint, loaded
from quant_experts.model.groups import GroupPlan
from quant_experts.model.run_context import RunContext
from quant_experts.progress import Advanced, stop_if
from quant_experts.report.data import GroupSensitivity
from quant_experts.sensitivity.rows import few_rows
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
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.baseline import group_layers, overwritten_by_rounding
from quant_experts.walk.state_file import StateFile, temporary_states

CHUNK = 256
"""Positions whose logits are in memory at a time, of two streams."""

SCRATCH, STATES = ".sensitivity", "states"


@dataclass
class _Moments:
    """Sums over all values of a group's input, in double precision."""

    count: int = 0
    total: float = 0.0
    total_abs: float = 0.0
    squares: float = 0.0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach().double()
        self.count += x.numel()
        self.total += float(x.sum())
        self.total_abs += float(x.abs().sum())
        self.squares += float(x.square().sum())

    @property
    def mean_abs(self) -> float:
        return self.total_abs / self.count

    @property
    def variance(self) -> float:
        return max(self.squares / self.count - (self.total / self.count) ** 2, 0.0)


@torch.no_grad()
def measure_rounding_change(
    context: RunContext, inputs: CapturedInputs, spec: QuantizationSpec
) -> dict[str, GroupSensitivity]:
    """Group name → its three measures, at the spec's weight and activation bits and group size.

    ``inputs``: of the first stack. The blueprint holds no more weights afterwards than before.
    Raises NumericalFailure naming a group whose measure is not finite, InvalidCalibration when no row has text, Stopped
    when ``should_stop`` says so.
    """
    inputs = replace(inputs, rows=few_rows(inputs, spec.seed), variants=())
    steps = len(context.plans) + 1
    with scratch_directory(context.work / SCRATCH) as directory:
        measurement = _Measurement(replace(context, work=directory), spec)
        for stack, next_stack in itertools.pairwise((*by_stack(context.plans), None)):
            assert stack is not None
            inputs = measurement.pass_stack(stack, next_stack, inputs)
        context.on_event(Advanced("calibrating", steps, steps))
    return measurement.result()


class _Measurement:
    """All streams on their way through the model. ``context.work``: the scratch directory."""

    def __init__(self, context: RunContext, spec: QuantizationSpec) -> None:
        self._context, self._spec, self._blueprint = context, spec, context.blueprint
        self._names = [plan.name for block in context.plans for plan in block]
        self._moments = {name: _Moments() for name in self._names}
        self._streams: list[str] = []
        """Of the groups that the rows have passed."""
        self._kl: dict[str, float] = {}

    def result(self) -> dict[str, GroupSensitivity]:
        return {name: _sensitivity(name, self._moments[name], self._kl[name]) for name in self._names}

    def pass_stack(
        self,
        stack: Sequence[Sequence[GroupPlan]],
        next_stack: Sequence[Sequence[GroupPlan]] | None,
        inputs: CapturedInputs,
    ) -> CapturedInputs:
        """Take all streams through the stack; returns the inputs of ``next_stack``, if there is one."""
        context, config = self._context, self._blueprint.model.config
        blocks, behind = split_stack(stack)
        last, rows = blocks[-1][0], inputs.running.rows
        own = [plan.name for block in blocks for plan in block]
        with (
            stack_loaded(self._blueprint, last.stack),
            temporary_states(context.work / STATES, (FULL, *self._streams, *own), inputs, rows) as states,
        ):
            for stream, row in itertools.product((FULL, *self._streams), rows):
                states.write(stream, row, inputs.embeddings(row, stream))
            for block in blocks:
                self._pass_block(block, inputs, rows, states)
                self._streams += [plan.name for plan in block]
                if next_stack is not None and is_read_by_transition(block[0], last, config):
                    has_left = dict.fromkeys(own, False) | dict.fromkeys((FULL, *self._streams), True)
                    write_states(context.work, block[0].block, states, has_left, rows)
                context.on_event(Advanced("calibrating", block[0].block + 1, len(context.plans) + 1))
            if next_stack is None:
                self._kl = self._compare(inputs, rows, states)
                return inputs
            inputs = run_transition(
                context,
                last,
                next_stack[0][0],
                inputs,
                streams=self._streams,
                behind=behind,
                rounding_of=self._rounded,
                observation=lambda: self._observed(behind),
            )
            self._streams += [plan.name for plan in behind]
            return inputs

    def _pass_block(
        self,
        block: Sequence[GroupPlan],
        inputs: CapturedInputs,
        rows: Sequence[CapturedRow],
        states: StateFile,
    ) -> None:
        """Take every stream through one block. The streams of its own groups begin here."""
        plan = block[0]
        assert plan.index is not None, "a block, not the part behind its stack"
        blueprint = self._blueprint
        with (
            loaded(blueprint, plan.stack.block(plan.index)),
            open_block_runner(blueprint.module(plan.stack), plan.index, plan.stack) as runner,
        ):
            for plan in block:
                with self._rounded(plan):
                    for row in rows:
                        self._run(runner, inputs, row, states, FULL, to=plan.name)
            for row in rows:
                for name in self._streams:
                    self._run(runner, inputs, row, states, name)
                with self._observed(block):
                    self._run(runner, inputs, row, states, FULL)
            for plan in block:
                _check_finite(plan.name, "input", self._moments[plan.name].mean_abs, self._moments[plan.name].variance)

    def _compare(self, inputs: CapturedInputs, rows: Sequence[CapturedRow], states: StateFile) -> dict[str, float]:
        """Group name → mean KL(full ‖ its stream) over the positions whose next token is text."""
        blueprint = self._blueprint
        sums = dict.fromkeys(self._names, 0.0)
        tokens = 0
        with (
            loaded(blueprint, *blueprint.manifest.after),
            open_block_runner(blueprint.language_model, blueprint.blocks, blueprint.manifest.decoder) as runner,
        ):
            for row in rows:
                for name in (FULL, *self._names):
                    self._run(runner, inputs, row, states, name)
                _, positions = text_positions(inputs, row, torch.device("cpu"))
                tokens += len(positions)
                for chunk in torch.split(positions, CHUNK):
                    p = _log_probabilities(blueprint, states.read(FULL, row)[0, chunk])
                    for name in self._names:
                        self._stop_if_asked()
                        q = _log_probabilities(blueprint, states.read(name, row)[0, chunk])
                        sums[name] += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        return {name: total / tokens for name, total in sums.items()}

    def _run(
        self,
        runner: BlockRunner,
        inputs: CapturedInputs,
        row: CapturedRow,
        states: StateFile,
        stream: str,
        *,
        to: str | None = None,
    ) -> None:
        """Run one row in ``stream``; its output goes into the stream ``to``, by default the same one."""
        self._stop_if_asked()
        # A stream that begins in this stack receives the arguments of the full-precision stream.
        is_own = row.streams is not None and stream in row.streams
        arguments = inputs.arguments(row, self._blueprint.device, stream if is_own else FULL)
        state = states.read(stream, row).to(self._blueprint.device)
        states.write(to or stream, row, runner.run(arguments, state).cpu())

    def _rounded(self, plan: GroupPlan) -> AbstractContextManager[None]:
        return rounded_group(self._blueprint, plan, self._spec)

    @contextmanager
    def _observed(self, block: Sequence[GroupPlan]) -> Iterator[None]:
        """Add the inputs of the block's groups to their moments."""
        firsts = [(group_layers(self._blueprint, plan)[0], self._moments[plan.name]) for plan in block]
        with hooked(layer.register_forward_pre_hook(moments) for layer, moments in firsts):
            yield

    def _stop_if_asked(self) -> None:
        stop_if(self._context.should_stop, "while measuring sensitivity; a later run measures it anew")


@contextmanager
def rounded_group(blueprint: Blueprint, plan: GroupPlan, spec: QuantizationSpec) -> Iterator[None]:
    """Round the group's layers to nearest at the spec's bits while this is open; then restore their weights."""
    layers = group_layers(blueprint, plan)
    originals = [layer.weight for layer in layers]
    for layer, weight in zip(layers, originals, strict=True):
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    bits = (spec.bits.weight_bits, spec.bits.activation_bits)
    try:
        with overwritten_by_rounding(layers, *bits, spec.group_size_for(plan.width), originals[0].dtype):
            yield
    finally:
        for layer, weight in zip(layers, originals, strict=True):
            layer.weight = weight


def _log_probabilities(blueprint: Blueprint, hidden: Tensor) -> Tensor:
    """hidden: (positions, d) behind the last norm; returns (positions, vocabulary) float32."""
    return blueprint.logits(hidden.to(blueprint.device)).float().log_softmax(-1)


def _sensitivity(name: str, moments: _Moments, kl: float) -> GroupSensitivity:
    _check_finite(name, "change of the output distribution", kl)
    # Rounding may leave -1e-9 where nothing changes.
    return GroupSensitivity(mean_abs=moments.mean_abs, variance=moments.variance, kl=max(kl, 0.0))


def _check_finite(name: str, what: str, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise NumericalFailure(
            f"input group {name}: its {what} is not finite; the model overflows on this calibration data (try bfloat16 "
            "or float32 weights)"
        )
