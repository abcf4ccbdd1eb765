"""How many bits an input group will take in the checkpoint, known before it is fitted."""

from __future__ import annotations

import torch

from quant_experts.checkpoint.layout import weight_scale_dtype
from quant_experts.model.groups import GroupPlan
from quant_experts.spec.ranks import SHAPE_BITS, SMOOTH_BITS, adapter_bits
from quant_experts.spec.specification import QuantizationSpec


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
    ranks = spec.ranks_for(rows=rows, width=plan.width, layers=len(plan.layers))
    return base + smooth + adapter_bits(rows, plan.width, ranks, int8=spec.adapter_dtype == "int8")
