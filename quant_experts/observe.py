"""Run one block in full precision and gather what its input groups see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.blueprint import Blueprint
from quant_experts.calls import Call, Calls
from quant_experts.chain import HiddenStates
from quant_experts.config import QuantizationSpec
from quant_experts.errors import Stopped
from quant_experts.glue import block_glue
from quant_experts.groups import GroupPlan
from quant_experts.progress import ShouldStop
from quant_experts.statistics import GroupStatistics, Observation, TokenReservoir, channel_importance

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
    """Receives one group's inputs; ``vision``, ``held_out`` and ``first_half`` are those of the row that is running."""

    statistics: GroupStatistics
    importance: Tensor
    held: TokenReservoir
    vision: Tensor | None = None
    held_out: bool = False
    first_half: bool = True

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        assert self.vision is not None
        x = args[0].detach().reshape(-1, args[0].shape[-1])
        if self.held_out:
            self.held.update(x, self.vision)
        else:
            self.statistics.update(x, self.vision, first_half=self.first_half)


def observe_block(
    blueprint: Blueprint,
    plans: Sequence[GroupPlan],
    calls: Calls,
    hidden: HiddenStates,
    spec: QuantizationSpec,
    should_stop: ShouldStop,
) -> tuple[dict[str, Observed], dict[int, Tensor]]:
    """Observations of every group by name, and the full-precision outputs of held-out rows and variants by row index,
    on the CPU.

    The block holds its full-precision weights. Statistics are of the quantized prefix's hidden states, because those
    are what the quantized block will meet; held-out rows pass a second time behind the full-precision prefix. Rows to
    fit belong to two halves in turn.
    Raises NumericalFailure naming a group whose input is not finite; Stopped between rows.
    """
    device, block = blueprint.device, plans[0].block
    with _gatherers(blueprint, plans, spec) as gatherers, block_glue(blueprint.language_model, block) as glue:
        for place, call in enumerate(calls.rows):
            _stop_if(should_stop)
            vision = calls.vision(call).to(device)
            for gatherer in gatherers.values():
                gatherer.vision, gatherer.held_out, gatherer.first_half = vision, call.held_out, place % 2 == 0
            glue.run(calls.arguments(call, device), hidden.quantized(call).to(device))
    rows = (*calls.held_out, *calls.variants)
    outputs = run_rows(blueprint, block, calls, rows, hidden.full, should_stop)
    full = {call.index: output for call, output in zip(rows, outputs, strict=True)}
    return {name: _finish(gatherer) for name, gatherer in gatherers.items()}, full


def run_rows(
    blueprint: Blueprint,
    block: int,
    calls: Calls,
    rows: Sequence[Call],
    states: Callable[[Call], Tensor],
    should_stop: ShouldStop,
) -> Iterator[Tensor]:
    """Outputs of the block as it is now, row by row, on the CPU; ``states``: its input for a row. May raise Stopped."""
    with block_glue(blueprint.language_model, block) as glue:
        for call in rows:
            _stop_if(should_stop)
            yield glue.run(calls.arguments(call, blueprint.device), states(call).to(blueprint.device)).cpu()


def group_weights(blueprint: Blueprint, plan: GroupPlan) -> dict[str, Tensor]:
    """Layer name → (out, d), the weights that the block holds now."""
    parent = blueprint.model.get_submodule(plan.parent)
    return {layer: getattr(parent, layer).weight.detach() for layer in plan.layers}


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
            gatherers[plan.name] = _Gatherer(statistics, importance, held)
            first = blueprint.model.get_submodule(f"{plan.parent}.{plan.layers[0]}")
            hooks.append(first.register_forward_pre_hook(gatherers[plan.name]))
        yield gatherers
    finally:
        for hook in hooks:
            hook.remove()


def _finish(gatherer: _Gatherer) -> Observed:
    tokens, vision = gatherer.held.finish()
    return Observed(gatherer.statistics.finish(), gatherer.importance, tokens, vision)


def _stop_if(should_stop: ShouldStop) -> None:
    if should_stop():
        raise Stopped("stopped between rows; finished blocks are on disk and a later run goes on from them")
