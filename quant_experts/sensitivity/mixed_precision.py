"""Which input groups keep more weight bits than the scheme's.

- ``sensitive.groups``: those that the user names.
- ``sensitive.share``: the most sensitive ones. Extra bits are the same for every weight, so groups are sorted by KL per
  weight and taken in this order as long as they fit into the share; the first is taken even if it alone is larger.
- ``budget``: steps of a group from the scheme's bits up to 8, bit by bit (to 6 and to 8 before ``method_version`` 4),
  each with the KL that it removes per bit that it stores, best first, as long as the whole stays within the budget. Per
  stored bit a later step of a group always gains less than an earlier one, so that this order is the best one up to the
  last step that fits.

KL is measured at the scheme's own bits (sensitivity/rounding_change.py), weights and activations together. At more
weight bits it is not measured but assumed to shrink as the squared rounding step does, 4^-bits; what rounding the
activations adds does not shrink, so gains are upper bounds, in the same way for every group.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from quant_experts.checkpoint.layout import stored_group_bits
from quant_experts.errors import InvalidSpec
from quant_experts.model.groups import GroupPlan
from quant_experts.report.data import MixedPrecision
from quant_experts.spec.methods import MOST_WEIGHT_BITS, levels_of
from quant_experts.spec.specification import AUTO, Budget, QuantizationSpec, Sensitive

NEAR_MATCHES = 3


@dataclass(frozen=True)
class Step:
    """One group from ``bits_before`` to ``bits`` weight bits. ``gain``: the KL that it removes, in nats. ``cost``: the
    bits that it adds to the checkpoint."""

    group: str
    bits_before: int
    bits: int
    gain: float
    cost: int


def check_mixed_precision(spec: QuantizationSpec, plans: Sequence[Sequence[GroupPlan]], dtype: torch.dtype) -> None:
    """Check the spec before anything runs. ``dtype``: the model's. Raises InvalidSpec."""
    if spec.scheme == AUTO:
        return
    groups = list(itertools.chain.from_iterable(plans))
    if spec.sensitive is not None:
        if spec.sensitive.weight_bits <= spec.bits.weight_bits:
            raise InvalidSpec(
                f"sensitive.weight_bits {spec.sensitive.weight_bits} is not more than the {spec.bits.weight_bits} bits "
                f"of scheme {spec.scheme}; take more bits or leave out sensitive"
            )
        if spec.sensitive.groups is not None:
            named_groups(spec.sensitive.groups, groups)
    if spec.budget is not None:
        _check_budget(spec, spec.budget, groups, dtype)


def assign(
    spec: QuantizationSpec, plans: Sequence[Sequence[GroupPlan]], kl: Mapping[str, float], dtype: torch.dtype
) -> tuple[dict[str, int], MixedPrecision] | None:
    """Group name → weight bits of those that keep more, and what the report says; None when nothing was asked for.

    ``kl``: of every group, nats per token. Raises InvalidSpec as ``check_mixed_precision`` does.
    """
    groups = list(itertools.chain.from_iterable(plans))
    if spec.sensitive is not None:
        assignment, decided_by = _sensitive(spec.sensitive, groups, kl)
        return _described(dict.fromkeys(assignment, spec.sensitive.weight_bits), groups, spec, decided_by)
    if spec.budget is not None:
        _check_budget(spec, spec.budget, groups, dtype)
        limit = int(spec.budget.bits_per_weight * sum(plan.weights for plan in groups))
        steps = upward_steps(spec, groups, kl, dtype)
        bits = fill_budget(steps, spec.bits.weight_bits, limit - _stored(groups, spec, dtype))
        return _described(bits, groups, spec, "budget")
    return None


def named_groups(names: Iterable[str], groups: Sequence[GroupPlan]) -> list[str]:
    """Full names of the groups that ``names`` mean, in the order of the model; a name's end may mean several.

    Raises InvalidSpec listing near matches for a name that means none.
    """
    chosen: set[str] = set()
    for name in names:
        matches = [plan.name for plan in groups if plan.name == name or plan.name.endswith(f".{name}")]
        if not matches:
            raise InvalidSpec(f"sensitive.groups: no input group is called {name!r}; {_near(name, groups)}")
        chosen.update(matches)
    return [plan.name for plan in groups if plan.name in chosen]


def most_sensitive(groups: Sequence[GroupPlan], kl: Mapping[str, float], share: float) -> list[str]:
    """Names of the groups with the largest KL per weight that together hold at most ``share`` of all weights, or of the
    first alone when it holds more; in the order of the model."""
    order = sorted(groups, key=lambda plan: -max(kl[plan.name], 0.0) / plan.weights)
    room = share * sum(plan.weights for plan in groups)
    names: set[str] = set()
    for plan in order:
        if plan.weights <= room or not names:
            names.add(plan.name)
            room -= plan.weights
    return [plan.name for plan in groups if plan.name in names]


def upward_steps(
    spec: QuantizationSpec, groups: Sequence[GroupPlan], kl: Mapping[str, float], dtype: torch.dtype
) -> list[Step]:
    """Every step that a budget could take."""
    base = spec.bits.weight_bits
    levels = [base, *(bits for bits in levels_of(spec.method_version) if bits > base)]
    steps = []
    for plan in groups:
        for before, after in itertools.pairwise(levels):
            gain = max(kl[plan.name], 0.0) * (4.0 ** (base - before) - 4.0 ** (base - after))
            cost = _stored([plan], spec.with_weight_bits(after), dtype) - _stored(
                [plan], spec.with_weight_bits(before), dtype
            )
            steps.append(Step(plan.name, before, after, gain, cost))
    return steps


def fill_budget(steps: Iterable[Step], base: int, room: int) -> dict[str, int]:
    """Group name → weight bits, after the steps that gain most per stored bit and together store at most ``room``.

    ``base``: the weight bits that every group starts from.
    """
    bits: dict[str, int] = {}
    # Sorting is stable: of equals the earlier group and the lower step come first.
    for step in sorted(steps, key=lambda step: -step.gain / step.cost):
        if bits.get(step.group, base) == step.bits_before and step.cost <= room:
            bits[step.group] = step.bits
            room -= step.cost
    return bits


def _sensitive(
    sensitive: Sensitive, groups: Sequence[GroupPlan], kl: Mapping[str, float]
) -> tuple[list[str], Literal["names", "share"]]:
    if sensitive.groups is not None:
        return named_groups(sensitive.groups, groups), "names"
    assert sensitive.share is not None
    return most_sensitive(groups, kl, sensitive.share), "share"


def _described(
    bits: dict[str, int],
    groups: Sequence[GroupPlan],
    spec: QuantizationSpec,
    decided_by: Literal["names", "share", "budget"],
) -> tuple[dict[str, int], MixedPrecision]:
    groups_above = [plan for plan in groups if plan.name in bits]
    report = MixedPrecision(
        weight_bits=max(bits.values(), default=spec.bits.weight_bits),
        groups=[plan.name for plan in groups_above],
        share=sum(plan.weights for plan in groups_above) / sum(plan.weights for plan in groups),
        decided_by=decided_by,
    )
    return bits, report


def _check_budget(spec: QuantizationSpec, budget: Budget, groups: Sequence[GroupPlan], dtype: torch.dtype) -> None:
    if spec.bits.weight_bits >= MOST_WEIGHT_BITS:
        raise InvalidSpec(f"budget: scheme {spec.scheme} has the most weight bits already; leave out budget")
    base = _stored(groups, spec, dtype) / sum(plan.weights for plan in groups)
    if budget.bits_per_weight < base:
        raise InvalidSpec(
            f"budget: {budget.bits_per_weight:g} bits per weight are less than the {base:.3f} that {spec.scheme} takes "
            "with its scales and adapters on this model; give more, or fewer experts, smaller ranks or int8 adapters"
        )


def _stored(groups: Iterable[GroupPlan], spec: QuantizationSpec, dtype: torch.dtype) -> int:
    return sum(stored_group_bits(plan, spec, dtype) for plan in groups)


def _near(name: str, groups: Sequence[GroupPlan]) -> str:
    """Group names are compared over as many dotted parts as the wrong one has; layers' names mean their groups."""
    length = name.count(".") + 1
    ends: dict[str, str] = {}
    for plan in groups:
        for alias in (plan.name, *(f"{plan.parent}.{layer}" for layer in plan.layers)):
            ends.setdefault(".".join(alias.split(".")[-length:]), ".".join(plan.name.split(".")[-max(length, 1) :]))
    close = difflib.get_close_matches(name, ends, n=3 * NEAR_MATCHES, cutoff=0.5)
    matches = list(dict.fromkeys(ends[match] for match in close))[:NEAR_MATCHES]
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    return f"names are like {groups[0].name}, or an end of it"
