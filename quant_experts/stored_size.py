"""How many bits an input group will take in the checkpoint, known before it is fitted."""

from __future__ import annotations

from quant_experts.config import QuantizationSpec
from quant_experts.fit import DEFAULT_GROUP_SIZE
from quant_experts.groups import GroupPlan

ADAPTER_BITS = 16
SMOOTH_BITS = 32
SHAPE_BITS = 2 * 64
"""Of a layer's ``weight_shape``."""


def group_size(spec: QuantizationSpec, width: int) -> int:
    """Input channels that share a weight scale in a group of this input width. A number has been seen to divide it."""
    if spec.group_size == "channel":
        return width
    size = DEFAULT_GROUP_SIZE if spec.group_size == "auto" else spec.group_size
    return size if width % size == 0 else width


def stored_group_bits(plan: GroupPlan, spec: QuantizationSpec, *, scale_bits: int) -> int:
    """At most this much is stored: integers, scales, shapes, smoothing, adapters, router; biases do not count.

    ``scale_bits``: of the model's dtype. A fit may end below it, with no scaling or with fewer experts than asked for
    because a group has too few token-dependent channels; it never ends above.
    """
    words = -(-plan.width * spec.bits.weight_bits // 32)
    scales = plan.width // group_size(spec, plan.width)
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
