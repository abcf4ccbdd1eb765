"""The configurations that a search chooses from, with what each will take in bytes before anything is fitted.

Weight bits 3, 4, 6, 8 x with adapters or without x the most sensitive tenth of the weights at 8 bits or not; and from
``method_version`` 4 on, weight bits that differ from group to group within a budget, without adapters. Activations
always have 8 bits. They take no bytes, so that fewer bits could only lose; 16 bits would need another kind of kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from quant_experts.checkpoint.layout import stored_group_bits
from quant_experts.model.groups import GroupPlan
from quant_experts.sensitivity.mixed_precision import fill_budget, most_sensitive, upward_steps
from quant_experts.spec.methods import MOST_WEIGHT_BITS
from quant_experts.spec.specification import QuantizationSpec

SCHEMES = ("W3A8", "W4A8", "W6A8", "W8A8")
EXPERTS = 8
EXPERT_RANKS = (16, 32)
ADAPTER_RANKS = (16, 64)
"""Of methods with a single adapter."""
SENSITIVE_SHARE = 0.1
SENSITIVE_BITS = MOST_WEIGHT_BITS
BASES = SCHEMES[:-1]
"""Schemes whose groups a budget may raise."""
BUDGET_STEP = 0.25
"""Bits per weight between the budgets that a search for a KL may choose."""
MOST_BUDGET = 16
"""Bits per weight that a spec's budget may name."""
BASES_OF_A_SIZE = 2
"""Schemes whose groups are raised to fill a size: the largest that fit into it."""


@dataclass(frozen=True)
class Point:
    """``options``: what it lays over the spec as given, ``spec``: the result. ``weight_bits``: of the groups that have
    more than the scheme.

    ``bytes``: of all tensors of the checkpoint, at most; ``effective_bits``: stored per quantized weight, at most.
    ``richness``: weight bits, place among the adapters, bits per weight that groups have beyond the scheme.
    """

    label: str
    options: dict[str, Any]
    spec: QuantizationSpec
    bytes: int
    effective_bits: float
    richness: tuple[int, int, float]
    weight_bits: dict[str, int] = field(default_factory=dict)


def resolved(spec: QuantizationSpec, options: Mapping[str, Any]) -> QuantizationSpec:
    """``spec`` with the options of a point in place of its target."""
    return QuantizationSpec.model_validate({**spec.model_dump(), **options, "target": None})


def grid(
    spec: QuantizationSpec,
    plans: Sequence[Sequence[GroupPlan]],
    kl: Mapping[str, float],
    *,
    unquantized_bytes: int,
    dtype: torch.dtype,
) -> list[Point]:
    """All points, smallest first.

    ``kl``: of every group, for the order of sensitivity. ``unquantized_bytes``: of the tensors that no group replaces.
    ``dtype``: the model's.
    """
    model = _Model(list(itertools.chain.from_iterable(plans)), kl, unquantized_bytes, dtype)
    points = [*_uniform(spec, model), *(_by_budget(spec, model) if spec.method_version > 3 else ())]
    return sorted(points, key=lambda point: point.bytes)


@dataclass(frozen=True)
class _Model:
    groups: Sequence[GroupPlan]
    kl: Mapping[str, float]
    unquantized_bytes: int
    dtype: torch.dtype

    @property
    def weights(self) -> int:
        return sum(plan.weights for plan in self.groups)

    def stored(self, spec: QuantizationSpec, weight_bits: Mapping[str, int] | None = None) -> int:
        """Bits. ``weight_bits``: of the groups that have others than the scheme."""
        other = weight_bits or {}
        return sum(
            stored_group_bits(plan, spec.with_weight_bits(other[plan.name]) if plan.name in other else spec, self.dtype)
            for plan in self.groups
        )

    def point(
        self,
        label: str,
        spec: QuantizationSpec,
        options: dict[str, Any],
        place: int,
        more: float,
        weight_bits: dict[str, int],
    ) -> Point:
        """``place``, ``more``: what ``richness`` holds beside the weight bits of the scheme."""
        candidate = resolved(spec, options)
        bits = self.stored(candidate, weight_bits)
        return Point(
            label=label,
            options=options,
            spec=candidate,
            bytes=self.unquantized_bytes + bits // 8,
            effective_bits=bits / self.weights,
            richness=(candidate.bits.weight_bits, place, more),
            weight_bits=weight_bits,
        )


def _uniform(spec: QuantizationSpec, model: _Model) -> Iterator[Point]:
    """One width for all groups, or another one for the most sensitive tenth."""
    sensitive = dict.fromkeys(most_sensitive(model.groups, model.kl, SENSITIVE_SHARE), SENSITIVE_BITS)
    for scheme, (place, (adapters, options)) in itertools.product(SCHEMES, enumerate(_adapters(spec))):
        label, own = f"{scheme} · {adapters}" if adapters else scheme, {"scheme": scheme, **options}
        more = SENSITIVE_BITS - resolved(spec, own).bits.weight_bits
        yield model.point(label, spec, own, place, 0.0 if more else float(SENSITIVE_BITS), {})
        if more:
            raised = {"groups": list(sensitive), "weight_bits": SENSITIVE_BITS}
            label += f" · {SENSITIVE_SHARE:.0%} at {SENSITIVE_BITS} bits".replace("%", " %")
            yield model.point(label, spec, own | {"sensitive": raised}, place, SENSITIVE_SHARE * more, sensitive)


def _by_budget(spec: QuantizationSpec, model: _Model) -> Iterator[Point]:
    """Weight bits by need, without adapters: budgets that fill a size, or in steps up to the most bits."""
    _, without = _adapters(spec)[0]
    for scheme, budget in _budgets(spec, without, model):
        options = {"scheme": scheme, **without, "budget": {"bits_per_weight": budget}}
        base = resolved(spec, options)
        room = int(budget * model.weights) - model.stored(base)
        raised = fill_budget(upward_steps(base, model.groups, model.kl, model.dtype), base.bits.weight_bits, room)
        widths = {raised.get(plan.name, base.bits.weight_bits) for plan in model.groups}
        if len(widths) > 1:  # with one width for all it is a point already
            label = f"{scheme} · up to {MOST_WEIGHT_BITS} bits where needed, {budget:g} in all"
            yield model.point(label, spec, options, 0, room / model.weights, raised)


def _budgets(spec: QuantizationSpec, without: Mapping[str, Any], model: _Model) -> Iterator[tuple[str, float]]:
    """(scheme, bits per weight) with room beyond the scheme's own. ``without``: the options without adapters."""
    most = None if spec.target is None or spec.target.max_bytes is None else spec.target.max_bytes
    least = {scheme: model.stored(resolved(spec, {"scheme": scheme, **without})) / model.weights for scheme in BASES}
    if most is None:
        yield from ((scheme, budget) for scheme in BASES for budget in _steps(least[scheme]))
        return
    budget = _bits_per_weight(most, model)
    fitting = [scheme for scheme in BASES if least[scheme] < budget]
    yield from ((scheme, budget) for scheme in fitting[-BASES_OF_A_SIZE:])


def _bits_per_weight(max_bytes: int, model: _Model) -> float:
    """That fill ``max_bytes``, rounded down; no more than a budget may ask for."""
    thousandths = 8 * (max_bytes - model.unquantized_bytes) * 1000 // model.weights
    return min(thousandths / 1000, float(MOST_BUDGET))


def _steps(least: float) -> list[float]:
    """The budgets beyond ``least`` that a search for a KL may choose."""
    first = int(least / BUDGET_STEP) + 1
    return [step * BUDGET_STEP for step in range(first, int(MOST_WEIGHT_BITS / BUDGET_STEP) + 1)]


def _adapters(spec: QuantizationSpec) -> list[tuple[str, dict[str, Any]]]:
    """(label, options) of what may be added back to the rounded weights, poorest first, for the user's method."""
    if spec.reconstruction == "none":
        return [("", {})]
    without: tuple[str, dict[str, Any]] = ("no adapters", {"reconstruction": "none"})
    if spec.method_version > 2:
        return [without, ("experts" if spec.reconstruction == "qe" else "adapter", {})]
    if spec.reconstruction != "qe":
        return [without, *((f"rank {rank}", {"shared_rank": rank}) for rank in ADAPTER_RANKS)]
    experts = [
        (f"{EXPERTS} experts of rank {rank}", {"experts": EXPERTS, "shared_rank": rank, "routed_rank": rank})
        for rank in EXPERT_RANKS
    ]
    return [without, *experts]
