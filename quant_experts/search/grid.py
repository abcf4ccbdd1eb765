"""The configurations that a search chooses from, with what each will take in bytes before anything is fitted.

Weight bits 3, 4, 6, 8 x with adapters or without x the most sensitive tenth of the weights at 8 bits or not.
Activations always have 8 bits. They take no bytes, so that fewer bits could only lose; 16 bits would need another kind
of kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from quant_experts.checkpoint.layout import stored_group_bits
from quant_experts.model.groups import GroupPlan
from quant_experts.sensitivity.mixed_precision import most_sensitive
from quant_experts.spec.specification import QuantizationSpec

SCHEMES = ("W3A8", "W4A8", "W6A8", "W8A8")
EXPERTS = 8
EXPERT_RANKS = (16, 32)
ADAPTER_RANKS = (16, 64)
"""Of methods with a single adapter."""
SENSITIVE_SHARE = 0.1
SENSITIVE_BITS = 8


@dataclass(frozen=True)
class Point:
    """``options``: what it lays over the spec as given, ``spec``: the result. ``weight_bits``: of the sensitive groups.

    ``bytes``: of all tensors of the checkpoint, at most; ``effective_bits``: stored per quantized weight, at most.
    ``richness``: weight bits, place among the adapters, whether sensitive groups have 8 bits.
    """

    label: str
    options: dict[str, Any]
    spec: QuantizationSpec
    bytes: int
    effective_bits: float
    richness: tuple[int, int, bool]
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
    groups = list(itertools.chain.from_iterable(plans))
    sensitive = most_sensitive(groups, kl, SENSITIVE_SHARE)
    points = []
    for scheme, (place, (adapters, options)) in itertools.product(SCHEMES, enumerate(_adapters(spec))):
        for sensitive_groups in ([], sensitive):
            options_of_point: dict[str, Any] = {"scheme": scheme, **options}
            label = f"{scheme} · {adapters}" if adapters else scheme
            if sensitive_groups:
                options_of_point["sensitive"] = {"groups": sensitive_groups, "weight_bits": SENSITIVE_BITS}
                label += f" · {SENSITIVE_SHARE:.0%} at {SENSITIVE_BITS} bits".replace("%", " %")
            candidate = resolved(spec, options_of_point)
            is_uniform = candidate.bits.weight_bits >= SENSITIVE_BITS
            if sensitive_groups and is_uniform:
                continue
            weight_bits = dict.fromkeys(sensitive_groups, SENSITIVE_BITS)
            bits = _stored(candidate, groups, weight_bits, dtype)
            points.append(
                Point(
                    label=label,
                    options=options_of_point,
                    spec=candidate,
                    bytes=unquantized_bytes + bits // 8,
                    effective_bits=bits / sum(plan.weights for plan in groups),
                    richness=(candidate.bits.weight_bits, place, bool(sensitive_groups) or is_uniform),
                    weight_bits=weight_bits,
                )
            )
    return sorted(points, key=lambda point: point.bytes)


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


def _stored(
    spec: QuantizationSpec, groups: Sequence[GroupPlan], weight_bits: Mapping[str, int], dtype: torch.dtype
) -> int:
    more_bits = spec.with_weight_bits(SENSITIVE_BITS)
    return sum(stored_group_bits(plan, more_bits if plan.name in weight_bits else spec, dtype) for plan in groups)
