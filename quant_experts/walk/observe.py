"""Run one block in full precision and collect the statistics of its input groups (method.md, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow, Stream
from quant_experts.fit.statistics import GroupStatistics, Observation, TokenReservoir, channel_importance
from quant_experts.forward.modeling_quant_experts import MixtureExperts
from quant_experts.model.block_runner import hooked
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.groups import GroupPlan
from quant_experts.model.run_context import RunContext
from quant_experts.progress import stop_if
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.baseline import group_layers
from quant_experts.walk.lent_tokens import Lender, Observer

HELD_OUT_TOKENS = 2048
"""Held-out tokens per group on which its errors are measured: a mean over 2048 is uncertain in its third digit."""


@dataclass(frozen=True)
class GroupObservation:
    """``observation``: of the rows to fit. ``importance``: (d,) float32, of the group's weights. ``tokens``: (T, d) of
    held-out rows in the model's dtype; ``vision``: (T,) bool."""

    observation: Observation
    importance: Tensor
    tokens: Tensor
    vision: Tensor
    routed: int | None = None
    borrowed: int | None = None


@dataclass
class _GroupObserver:
    """A hook that receives one group's inputs. ``vision``, ``held_out`` and ``first_half`` describe the current row.
    ``rows``: which of its tokens an expert of a mixture gets; ``own``, ``own_held_out`` count them, ``borrowed`` those
    that it is ``lent``.

    Where the group's stack reads images or audio alone, the stack decides the modality of its tokens, not the row.
    """

    plan: GroupPlan
    statistics: GroupStatistics
    importance: Tensor
    held_out_tokens: TokenReservoir
    vision: Tensor | None = None
    held_out: bool = False
    first_half: bool = True
    rows: Tensor | None = None
    lent: bool = False
    own: int = 0
    own_held_out: int = 0
    borrowed: int = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        assert self.vision is not None
        x = args[0].detach().reshape(-1, args[0].shape[-1])
        vision = self.vision if self.rows is None else self.vision[self.rows]
        if self.plan.stack.media is not None or self.plan.of_memory:
            vision = torch.full(x.shape[:1], self.plan.stack.media == "image", device=x.device)
        elif len(x) != len(vision):  # not the row's tokens: several streams of them, a state before the first
            vision = torch.zeros(x.shape[:1], dtype=torch.bool, device=x.device)
        if self.held_out:
            self.held_out_tokens.update(x, vision)
            self.own_held_out += 0 if self.lent else len(x)
        else:
            self.statistics.update(x, vision, first_half=self.first_half)
            self.own += 0 if self.lent else len(x)
            self.borrowed += len(x) if self.lent else 0


def observe_block(
    context: RunContext,
    plans: Sequence[GroupPlan],
    inputs: CapturedInputs,
    run_row: Callable[[CapturedRow, Stream], object],
    spec: QuantizationSpec,
) -> dict[str, GroupObservation]:
    """Run the rows through the block, which holds its full-precision weights; group name → observation.

    ``plans``: of the block. ``inputs``: of the rows that reach it. The rows travel in the quantized stream, because the
    quantized block will receive that one. Rows to fit alternate between two halves.
    Raises NumericalFailure naming a group whose input is not finite; Stopped between rows.
    """
    device = context.blueprint.device
    with (
        _group_observers(context.blueprint, plans, spec) as observers,
        _lenders(context.blueprint, plans, observers, spec.seed) as lenders,
    ):
        for place, row in enumerate(inputs.rows):
            stop_if(context.should_stop)
            vision = inputs.vision(row).to(device)
            for observer in observers.values():
                observer.vision, observer.held_out, observer.first_half = vision, row.held_out, place % 2 == 0
            for lender in lenders:
                lender.vision, lender.held_out = vision, row.held_out
            run_row(row, "quantized")
        for lender in lenders:
            lender.lend()
    return {name: _finish(observer) for name, observer in observers.items()}


def group_weights(blueprint: Blueprint, plan: GroupPlan) -> dict[str, Tensor]:
    """Layer name → (out, d), the weights that the block holds now."""
    layers = group_layers(blueprint, plan)
    return {name: layer.weight.detach() for name, layer in zip(plan.layers, layers, strict=True)}


@contextmanager
def _group_observers(
    blueprint: Blueprint, plans: Sequence[GroupPlan], spec: QuantizationSpec
) -> Iterator[dict[str, _GroupObserver]]:
    observers = {plan.name: _observer(blueprint, plan, spec) for plan in plans}
    with hooked(group_layers(blueprint, plan)[0].register_forward_pre_hook(observers[plan.name]) for plan in plans):
        yield observers


@contextmanager
def _lenders(
    blueprint: Blueprint, plans: Sequence[GroupPlan], observers: Mapping[str, _GroupObserver], seed: int
) -> Iterator[list[Lender]]:
    of_mixture: dict[str, dict[int, list[Observer]]] = {}
    for plan in plans:
        if plan.of_mixture and isinstance(blueprint.model.get_submodule(plan.parent), MixtureExperts):
            expert = int(plan.layers[0].rpartition(".")[2])
            of_mixture.setdefault(plan.parent, {}).setdefault(expert, []).append(observers[plan.name])
    lenders = [
        Lender(path, blueprint.model.get_submodule(path), of_expert, seed) for path, of_expert in of_mixture.items()
    ]
    with hooked(lender.experts.register_forward_pre_hook(lender) for lender in lenders):
        yield lenders


def _observer(blueprint: Blueprint, plan: GroupPlan, spec: QuantizationSpec) -> _GroupObserver:
    importance = channel_importance(torch.cat(list(group_weights(blueprint, plan).values())))
    statistics = GroupStatistics(
        plan.name,
        plan.width,
        importance,
        important_channels=spec.important_channels,
        reservoir=spec.reservoir,
        seed=spec.seed,
        device=blueprint.device,
    )
    held_out = TokenReservoir(HELD_OUT_TOKENS, seed=spec.seed, name=f"{plan.name}.held_out")
    return _GroupObserver(plan, statistics, importance, held_out)


def _finish(observer: _GroupObserver) -> GroupObservation:
    tokens, vision = observer.held_out_tokens.finish()
    counts = (observer.own, observer.borrowed) if observer.plan.of_mixture else (None, None)
    return GroupObservation(observer.statistics.finish(), observer.importance, tokens, vision, *counts)
