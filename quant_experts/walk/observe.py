"""Run one block in full precision and gather what its input groups see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.calibration.captured_inputs import Call, Calls, Stream
from quant_experts.fit.statistics import GroupStatistics, Observation, TokenReservoir, channel_importance
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.groups import GroupPlan
from quant_experts.progress import ShouldStop, stop_if
from quant_experts.spec.specification import QuantizationSpec

HELD_OUT_TOKENS = 2048
"""Held-out tokens kept per group to measure its errors on: a mean over 2048 tokens is uncertain in its third digit."""


@dataclass(frozen=True)
class Observed:
    """``observation``: of the rows to fit. ``importance``: (d,) float32, of the group's weights. ``tokens``: (T, d) of
    held-out rows in the model's dtype; ``vision``: (T,) bool."""

    observation: Observation
    importance: Tensor
    tokens: Tensor
    vision: Tensor


@dataclass
class _Gatherer:
    """Receives one group's inputs; ``vision``, ``held_out`` and ``first_half`` are those of the row that is running.

    ``plan``: says whether the tokens are those of the row at all, or pieces of images or audio without exception.
    """

    plan: GroupPlan
    statistics: GroupStatistics
    importance: Tensor
    held: TokenReservoir
    vision: Tensor | None = None
    held_out: bool = False
    first_half: bool = True

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        assert self.vision is not None
        x = args[0].detach().reshape(-1, args[0].shape[-1])
        vision = self.vision
        if self.plan.stack.media is not None or self.plan.of_memory:
            vision = torch.full(x.shape[:1], self.plan.stack.media == "image", device=x.device)
        if self.held_out:
            self.held.update(x, vision)
        else:
            self.statistics.update(x, vision, first_half=self.first_half)


def observe_block(
    blueprint: Blueprint,
    plans: Sequence[GroupPlan],
    calls: Calls,
    passing: Callable[[Call, Stream], object],
    spec: QuantizationSpec,
    should_stop: ShouldStop,
) -> dict[str, Observed]:
    """Observations of every group by name, while the rows pass the block, which holds its full-precision weights.

    ``calls``: of the rows that reach the block. Statistics are of the quantized prefix's hidden states, because those
    are what the quantized block will meet. Rows to fit belong to two halves in turn.
    Raises NumericalFailure naming a group whose input is not finite; Stopped between rows.
    """
    device = blueprint.device
    with _gatherers(blueprint, plans, spec) as gatherers:
        for place, call in enumerate(calls.rows):
            stop_if(should_stop)
            vision = calls.vision(call).to(device)
            for gatherer in gatherers.values():
                gatherer.vision, gatherer.held_out, gatherer.first_half = vision, call.held_out, place % 2 == 0
            passing(call, "quantized")
    return {name: _finish(gatherer) for name, gatherer in gatherers.items()}


def group_weights(blueprint: Blueprint, plan: GroupPlan) -> dict[str, Tensor]:
    """Layer name → (out, d), the weights that the block holds now."""
    parent = blueprint.model.get_submodule(plan.parent)
    return {layer: parent.get_submodule(layer).weight.detach() for layer in plan.layers}


@contextmanager
def _gatherers(
    blueprint: Blueprint, plans: Sequence[GroupPlan], spec: QuantizationSpec
) -> Iterator[dict[str, _Gatherer]]:
    gatherers: dict[str, _Gatherer] = {}
    hooks = []
    try:
        for plan in plans:
            stacked = torch.cat(list(group_weights(blueprint, plan).values()))
            importance = channel_importance(stacked)
            statistics = GroupStatistics(
                plan.name,
                plan.width,
                importance,
                important_channels=spec.important_channels,
                reservoir=spec.reservoir,
                seed=spec.seed,
                device=blueprint.device,
            )
            held = TokenReservoir(HELD_OUT_TOKENS, seed=spec.seed, name=f"{plan.name}.held_out")
            gatherers[plan.name] = _Gatherer(plan, statistics, importance, held)
            first = blueprint.model.get_submodule(f"{plan.parent}.{plan.layers[0]}")
            hooks.append(first.register_forward_pre_hook(gatherers[plan.name]))
        yield gatherers
    finally:
        for hook in hooks:
            hook.remove()


def _finish(gatherer: _Gatherer) -> Observed:
    tokens, vision = gatherer.held.finish()
    return Observed(gatherer.statistics.finish(), gatherer.importance, tokens, vision)
