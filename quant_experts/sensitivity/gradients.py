"""How much the loss feels an output error on image tokens and on text tokens, for each input group.

Source: MBQ (Li et al., CVPR 2025): the mean absolute gradient of the loss with respect to a layer's output, taken apart
by modality. The loss is the next-token cross entropy over all text: where the assistant's part begins is not kept.

One block in memory: forwards with every block's input stored, then from the head backwards, block by block under
autograd. What a model does between two blocks happens inside of the recorded forward, so that the gradient with respect
to a block's input is that with respect to the output of the block before, and nothing has to be assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.calibration.captured_inputs import Call, Calls
from quant_experts.errors import NumericalFailure, Stopped
from quant_experts.evaluation.next_token import after_the_blocks, text_positions
from quant_experts.fit.problem import EQUAL_WEIGHTS, ModalityWeights
from quant_experts.model.block_runner import block_glue
from quant_experts.model.blueprint import Blueprint, empty, fill
from quant_experts.model.groups import GroupPlan, block_prefix
from quant_experts.progress import Advanced, OnEvent, ShouldStop
from quant_experts.walk.state_file import StateFile, temporary_states

CHUNK = 256
"""Positions whose logits are in memory at a time, with their gradient."""

SMALLEST = 1e-3
"""Of a modality's weight; the larger one is 1. Behind the last attention image tokens have no gradient at all, and a
weight of zero would let a scale do to them whatever it likes."""

STATES = ".gradients.states"


@dataclass
class _Magnitudes:
    """Sums of |dL/dy| and numbers of values by modality, double precision. ``factor`` undoes the row's scaling."""

    vision: Tensor
    factor: float = 1.0
    sums: tuple[float, float] = (0.0, 0.0)
    counts: tuple[int, int] = (0, 0)

    def add(self, gradient: Tensor) -> None:
        """gradient: (1, tokens, out) or (tokens, out), of one layer."""
        of_token = gradient.detach().reshape(-1, gradient.shape[-1]).abs().sum(-1, dtype=torch.float64)
        image, text = float(of_token[self.vision].sum()), float(of_token[~self.vision].sum())
        images, width = int(self.vision.sum()), gradient.shape[-1]
        self.sums = (self.sums[0] + image * self.factor, self.sums[1] + text * self.factor)
        self.counts = (self.counts[0] + images * width, self.counts[1] + (len(of_token) - images) * width)


def measure_gradients(
    blueprint: Blueprint,
    plans: Sequence[Sequence[GroupPlan]],
    calls: Calls,
    *,
    work: Path,
    on_event: OnEvent,
    should_stop: ShouldStop,
) -> dict[str, ModalityWeights]:
    """Group name → the weights of both modalities, the larger one 1. ``plans``, ``calls``: of the last stack,
    with the rows to measure on.

    The blueprint is as empty afterwards as before. Raises NumericalFailure naming a group whose gradient is not finite,
    Stopped when ``should_stop`` says so.
    """
    rows = calls.rows
    streams = [str(number) for number in range(len(plans) + 1)]
    steps = 2 * len(plans) + 1
    with temporary_states(work / STATES, streams, calls, rows) as states:
        for number in range(len(plans)):
            _store_output(blueprint, number, calls, rows, states, should_stop)
            on_event(Advanced("calibrating", number + 1, steps))
        gradients = _of_the_loss(blueprint, calls, rows, states, should_stop)
        on_event(Advanced("calibrating", len(plans) + 1, steps))
        weights: dict[str, ModalityWeights] = {}
        for number in reversed(range(len(plans))):
            weights |= _backwards(blueprint, plans[number], calls, rows, states, gradients, should_stop)
            on_event(Advanced("calibrating", steps - number, steps))
    return {plan.name: weights[plan.name] for block in plans for plan in block}


def _store_output(
    blueprint: Blueprint,
    number: int,
    calls: Calls,
    rows: Sequence[Call],
    states: StateFile,
    should_stop: ShouldStop,
) -> None:
    """Stream ``n`` holds what comes out of the first n blocks."""
    with (
        _loaded(blueprint, block_prefix(blueprint.manifest, number)),
        block_glue(blueprint.language_model, number) as glue,
    ):
        for call in rows:
            _stop_if(should_stop)
            if number == 0:
                states.write("0", call, calls.embeddings(call))
            hidden = states.read(str(number), call).to(blueprint.device)
            states.write(str(number + 1), call, glue.run(calls.arguments(call, blueprint.device), hidden))


def _of_the_loss(
    blueprint: Blueprint, calls: Calls, rows: Sequence[Call], states: StateFile, should_stop: ShouldStop
) -> dict[int, Tensor]:
    """Row index → gradient of the summed cross entropy with respect to the last block's output, float32, CPU."""
    device = blueprint.device
    gradients: dict[int, Tensor] = {}
    with after_the_blocks(blueprint), block_glue(blueprint.language_model, blueprint.blocks) as glue:
        for call in rows:
            _stop_if(should_stop)
            with torch.enable_grad():
                hidden = states.read(str(blueprint.blocks), call).to(device).requires_grad_()
                last = glue.run_recorded(calls.arguments(call, device), hidden)
                normalised = last.detach().requires_grad_()
                targets, positions = text_positions(calls, call, device)
                for chunk in torch.split(positions, CHUNK):
                    logits = blueprint.logits(normalised[0, chunk]).float()
                    loss = nn.functional.cross_entropy(logits, targets[chunk], reduction="sum")
                    loss.backward()  # type: ignore[no-untyped-call]
                assert normalised.grad is not None
                gradients[call.index] = _through(last, normalised.grad.float(), hidden, 1.0)
    return gradients


def _backwards(
    blueprint: Blueprint,
    block: Sequence[GroupPlan],
    calls: Calls,
    rows: Sequence[Call],
    states: StateFile,
    gradients: dict[int, Tensor],
    should_stop: ShouldStop,
) -> dict[str, ModalityWeights]:
    """Replace the gradients with respect to the block's output by those with respect to its input."""
    number, device = block[0].index, blueprint.device
    assert number is not None, "the last stack has nothing behind its blocks"
    magnitudes = {plan.name: _Magnitudes(torch.zeros(0, dtype=torch.bool)) for plan in block}
    with (
        _loaded(blueprint, block_prefix(blueprint.manifest, number)),
        block_glue(blueprint.language_model, number) as glue,
        _watched(blueprint, block, magnitudes),
    ):
        for call in rows:
            _stop_if(should_stop)
            gradient = gradients[call.index].to(device)
            # float16 ends at 6e-8: the largest value is made 1 on the way through, and the sums are scaled back.
            factor = float(gradient.abs().amax()) or 1.0
            for magnitude in magnitudes.values():
                magnitude.vision, magnitude.factor = calls.vision(call).to(device), factor
            with torch.enable_grad():
                hidden = states.read(str(number), call).to(device).requires_grad_()
                output = glue.run_recorded(calls.arguments(call, device), hidden)
                gradients[call.index] = _through(output, gradient, hidden, factor)
    return {name: _weights(name, magnitude) for name, magnitude in magnitudes.items()}


def _through(output: Tensor, gradient: Tensor, hidden: Tensor, factor: float) -> Tensor:
    """gradient: with respect to ``output``; returns that with respect to ``hidden``, float32, CPU."""
    output.backward((gradient / factor).to(output.dtype))  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    return hidden.grad.float().cpu() * factor


@contextmanager
def _watched(blueprint: Blueprint, block: Sequence[GroupPlan], magnitudes: dict[str, _Magnitudes]) -> Iterator[None]:
    hooks = []
    for plan in block:
        add = magnitudes[plan.name].add

        def watch(module: nn.Module, args: tuple[Any, ...], output: Tensor, add: Any = add) -> None:
            output.register_hook(add)  # type: ignore[no-untyped-call]

        parent = blueprint.model.get_submodule(plan.parent)
        hooks += [parent.get_submodule(layer).register_forward_hook(watch) for layer in plan.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _weights(name: str, magnitude: _Magnitudes) -> ModalityWeights:
    means = [total / count if count else None for total, count in zip(magnitude.sums, magnitude.counts, strict=True)]
    there = [mean for mean in means if mean is not None]
    if not all(mean < float("inf") for mean in there):
        raise NumericalFailure(
            f"input group {name}: the gradient of the loss is not finite; the model overflows on this calibration data "
            "(try bfloat16 or float32 weights, or another smoothing than mbq)"
        )
    largest = max(there, default=0.0)
    if largest == 0.0 or len(there) < 2:
        return EQUAL_WEIGHTS
    vision, text = (max(mean / largest, SMALLEST) for mean in there)
    return ModalityWeights(vision=vision, text=text)


@contextmanager
def _loaded(blueprint: Blueprint, prefix: str) -> Iterator[None]:
    fill(blueprint, prefix)
    try:
        yield
    finally:
        empty(blueprint, prefix)


def _stop_if(should_stop: ShouldStop) -> None:
    if should_stop():
        raise Stopped("stopped while measuring gradients; a later run measures them anew")
