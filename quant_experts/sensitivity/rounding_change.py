"""How far the next-token distribution moves when a single input group is rounded to nearest.

One pass over the blocks, stack by stack (``border.py``), with one block in memory. Every group has a stream of hidden
states of its own, which leaves the full-precision stream at that group and goes on through the later blocks in full
precision; behind the last block all streams meet the output head.

Cost, for N blocks of G groups: N (1 + G) + G N (N - 1) / 2 block forwards for each row, that is about G N / 2 forwards
of the model: 56 for 28 blocks of 4 groups, on ``rows.ROWS`` rows. Disk: one hidden state per group and row.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.calibration.captured_inputs import Call, Calls
from quant_experts.errors import NumericalFailure, Stopped
from quant_experts.evaluation.next_token import after_the_blocks, text_positions
from quant_experts.fit.quantizer import dequantize, fake_quantize_tokens, quantize
from quant_experts.model.block_runner import Arguments, Glue, block_glue
from quant_experts.model.blueprint import Blueprint, empty, fill
from quant_experts.model.groups import GroupPlan
from quant_experts.progress import Advanced, OnEvent, ShouldStop
from quant_experts.report.data import GroupSensitivity
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
from quant_experts.sensitivity.rows import few_rows
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.state_file import StateFile, temporary_states

CHUNK = 256
"""Positions whose logits are in memory at a time, of two streams."""

SCRATCH, STATES = ".sensitivity", "states"


@dataclass
class _Moments:
    """Sums over all values of a group's input, in double precision: what n terms of float32 lose does not matter."""

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
    blueprint: Blueprint,
    plans: Sequence[Sequence[GroupPlan]],
    calls: Calls,
    spec: QuantizationSpec,
    *,
    work: Path,
    on_event: OnEvent,
    should_stop: ShouldStop,
) -> dict[str, GroupSensitivity]:
    """Group name → its three measures, at the spec's weight and activation bits and group size.

    The blueprint is as empty afterwards as before. Raises NumericalFailure naming a group whose measure is not finite,
    InvalidCalibration when no row has text, Stopped when ``should_stop`` says so.
    """
    calls = replace(calls, rows=few_rows(calls, spec.seed), variants=())
    names = [plan.name for block in plans for plan in block]
    moments = {name: _Moments() for name in names}
    streams: list[str] = []
    with scratch_directory(work / SCRATCH) as directory:
        for stack, following in itertools.pairwise((*by_stack(plans), None)):
            assert stack is not None
            blocks, behind = taken_apart(stack)
            running = calls.running.rows
            own = [plan.name for block in blocks for plan in block]
            with (
                around(blueprint, blocks[0][0].stack),
                temporary_states(directory / STATES, (FULL, *streams, *own), calls, running) as states,
            ):
                for stream, call in itertools.product((FULL, *streams), running):
                    states.write(stream, call, calls.embeddings(call, stream))
                for block in blocks:
                    _advance(blueprint, block, streams, moments, calls, running, states, spec, should_stop)
                    streams += [plan.name for plan in block]
                    if following is not None and is_read_at_the_border(block[0], blocks[-1][0], blueprint.model.config):
                        begun = dict.fromkeys(own, False) | dict.fromkeys((FULL, *streams), True)
                        keep_states(directory, block[0].block, states, begun, running)
                    on_event(Advanced("calibrating", block[0].block + 1, len(plans) + 1))
                if following is None:
                    kl = _meet_the_head(blueprint, names, calls, running, states, should_stop)
                else:
                    calls = cross_over(
                        blueprint,
                        blocks[-1][0],
                        behind,
                        following[0][0],
                        calls,
                        streams,
                        directory,
                        rounded=lambda plan: rounded_to_nearest(blueprint, plan, spec),
                        watched=functools.partial(_watched, blueprint, behind, moments),
                        should_stop=should_stop,
                    )
                    streams += [plan.name for plan in behind]
        on_event(Advanced("calibrating", len(plans) + 1, len(plans) + 1))
    return {name: _sensitivity(name, moments[name], kl[name]) for name in names}


def _advance(
    blueprint: Blueprint,
    block: Sequence[GroupPlan],
    earlier: Sequence[str],
    moments: dict[str, _Moments],
    calls: Calls,
    rows: Sequence[Call],
    states: StateFile,
    spec: QuantizationSpec,
    should_stop: ShouldStop,
) -> None:
    """Take every stream through one block; the streams of its own groups begin here."""
    first = block[0]
    assert first.index is not None, "a block, not what lies behind its stack"
    prefix = first.stack.block(first.index)
    fill(blueprint, prefix)
    try:
        with block_glue(blueprint.module(first.stack), first.index, first.stack) as glue:
            for plan in block:
                with rounded_to_nearest(blueprint, plan, spec):
                    for call in rows:
                        _stop_if(should_stop)
                        arguments = _arguments(calls, call, FULL, blueprint)
                        states.write(plan.name, call, _run(glue, arguments, states.read(FULL, call), blueprint))
            for call in rows:
                for name in earlier:
                    _stop_if(should_stop)
                    arguments = _arguments(calls, call, name, blueprint)
                    states.write(name, call, _run(glue, arguments, states.read(name, call), blueprint))
                arguments = _arguments(calls, call, FULL, blueprint)
                with _watched(blueprint, block, moments):
                    states.write(FULL, call, _run(glue, arguments, states.read(FULL, call), blueprint))
        for plan in block:
            _check_finite(plan.name, "input", moments[plan.name].mean_abs, moments[plan.name].variance)
    finally:
        empty(blueprint, prefix)


def _arguments(calls: Calls, call: Call, stream: str, blueprint: Blueprint) -> Arguments:
    """Of the stream behind a border; streams that began in this stack are called as the full-precision one is."""
    own = call.streams is not None and stream in call.streams
    return calls.arguments(call, blueprint.device, stream if own else FULL)


def _run(glue: Glue, arguments: Arguments, state: Tensor, blueprint: Blueprint) -> Tensor:
    return glue.run(arguments, state.to(blueprint.device)).cpu()


@contextmanager
def rounded_to_nearest(blueprint: Blueprint, plan: GroupPlan, spec: QuantizationSpec) -> Iterator[None]:
    """The group's layers with weights and inputs rounded to nearest at the spec's bits, in the model's dtype."""
    parent = blueprint.model.get_submodule(plan.parent)
    layers = [parent.get_submodule(layer) for layer in plan.layers]
    originals = [layer.weight for layer in layers]
    size, bits = spec.group_size_for(plan.width), spec.bits

    def round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (fake_quantize_tokens(args[0], bits.activation_bits), *args[1:])

    hooks = [layer.register_forward_pre_hook(round_input) for layer in layers]
    try:
        for layer, weight in zip(layers, originals, strict=True):
            codes, scales = quantize(weight, bits.weight_bits, size, weight.dtype)
            layer.weight = nn.Parameter(dequantize(codes, scales, size).to(weight.dtype), requires_grad=False)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, weight in zip(layers, originals, strict=True):
            layer.weight = weight


@contextmanager
def _watched(blueprint: Blueprint, block: Sequence[GroupPlan], moments: dict[str, _Moments]) -> Iterator[None]:
    firsts = {plan.name: blueprint.model.get_submodule(f"{plan.parent}.{plan.layers[0]}") for plan in block}
    hooks = [layer.register_forward_pre_hook(moments[name]) for name, layer in firsts.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _meet_the_head(
    blueprint: Blueprint,
    names: Sequence[str],
    calls: Calls,
    rows: Sequence[Call],
    states: StateFile,
    should_stop: ShouldStop,
) -> dict[str, float]:
    """Mean KL(full ‖ stream) over the positions whose next token is text."""
    sums = dict.fromkeys(names, 0.0)
    tokens = 0
    with after_the_blocks(blueprint), block_glue(blueprint.language_model, blueprint.blocks) as glue:
        for call in rows:
            for name in (FULL, *names):
                arguments = _arguments(calls, call, name, blueprint)
                states.write(name, call, _run(glue, arguments, states.read(name, call), blueprint))
            _, positions = text_positions(calls, call, torch.device("cpu"))
            tokens += len(positions)
            for chunk in torch.split(positions, CHUNK):
                p = _log_probabilities(blueprint, states.read(FULL, call)[0, chunk])
                for name in names:
                    _stop_if(should_stop)
                    q = _log_probabilities(blueprint, states.read(name, call)[0, chunk])
                    sums[name] += float((p.exp() * (p - q)).sum(dtype=torch.float64))
    return {name: total / tokens for name, total in sums.items()}


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


def _stop_if(should_stop: ShouldStop) -> None:
    if should_stop():
        raise Stopped("stopped while measuring sensitivity; a later run measures it anew")
