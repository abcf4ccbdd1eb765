"""How many bits an input group will take in the checkpoint, known before it is fitted."""

from __future__ import annotations

import torch

from quant_experts.checkpoint.layout import weight_scale_dtype
from quant_experts.config import QuantizationSpec
from quant_experts.groups import GroupPlan

ADAPTER_BITS = 16
SMOOTH_BITS = 32
SHAPE_BITS = 2 * 64
"""Of a layer's ``weight_shape``."""


def stored_group_bits(plan: GroupPlan, spec: QuantizationSpec, dtype: torch.dtype) -> int:
    """At most this much is stored: integers, scales, shapes, smoothing, adapters, router; biases do not count.

    ``dtype``: the model's. A fit may end below it, with no scaling or with fewer experts than asked for
    because a group has too few token-dependent channels; it never ends above.
    """
    words = -(-plan.width * spec.bits.weight_bits // 32)
    scales = plan.width // spec.group_size_for(plan.width)
    scale_bits = 8 * weight_scale_dtype(spec, dtype).itemsize
    rows = sum(plan.outs)
    base = rows * (32 * words + scales * scale_bits) + len(plan.layers) * SHAPE_BITS
    smooth = 0 if spec.smoothing == "none" else plan.width * SMOOTH_BITS
    return base + smooth + _adapter_bits(plan, spec)


def _adapter_bits(plan: GroupPlan, spec: QuantizationSpec) -> int:
    if spec.reconstruction == "none":
        return 0
    experts = spec.experts if spec.reconstruction == "qe" else 0
    router = experts * plan.width * ADAPTER_BITS
    return _expert_bits(plan, spec, spec.shared_rank) + experts * _expert_bits(plan, spec, spec.routed_rank) + router


def _expert_bits(plan: GroupPlan, spec: QuantizationSpec, wanted: int) -> int:
    """Up and down of one expert; in int8 each row has a scale."""
    rows = sum(plan.outs)
    rank = min(wanted, rows, plan.width)
    values = rank * (rows + plan.width)
    if spec.adapter_dtype == "int8" and rank:
        return 8 * values + ADAPTER_BITS * (rows + rank)
    return ADAPTER_BITS * values
