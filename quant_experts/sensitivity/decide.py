"""Decide what each input group is to get.

Most runs treat all groups alike. Mixed precision and modality-balanced methods look at the whole model first.
"""

from __future__ import annotations

from quant_experts.sensitivity.measuring import Measuring
from quant_experts.sensitivity.mixed_precision import assign
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.group_settings import Treatment


def decide_treatment(spec: QuantizationSpec, measuring: Measuring) -> Treatment:
    """Measure what the spec needs to know of the whole model, and decide for each group.

    Raises InvalidSpec as mixed_precision.check_mixed_precision does, NumericalFailure naming a group, Stopped.
    """
    modality_weights = measuring.modality_weights(spec)
    if spec.sensitive is None and spec.budget is None:
        return Treatment(spec, modality_weights=modality_weights)
    sensitivity = measuring.sensitivity(spec)
    kl = {name: values.kl for name, values in sensitivity.items()}
    assigned = assign(spec, measuring.plans, kl, measuring.blueprint.dtype)
    assert assigned is not None, "sensitive or budget was given"
    weight_bits, report = assigned
    return Treatment(spec, weight_bits, modality_weights, sensitivity, report)
