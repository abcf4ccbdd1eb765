"""What each input group is to get: its bits, and what errors on its vision and text tokens count.

Most runs treat all groups alike. Mixed precision and modality-balanced methods look at the whole model first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quant_experts.config import QuantizationSpec
from quant_experts.problem import ModalityWeights
from quant_experts.report import GroupSensitivity, MixedPrecision


@dataclass(frozen=True)
class Treatment:
    """Group names are full names. Groups that a mapping does not have get what the spec says.

    ``weight_bits``: of the groups that keep more than the scheme's. ``modality_weights``, ``sensitivity``: as measured.
    """

    spec: QuantizationSpec
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    modality_weights: Mapping[str, ModalityWeights] = field(default_factory=dict)
    sensitivity: Mapping[str, GroupSensitivity] = field(default_factory=dict)
    mixed_precision: MixedPrecision | None = None

    def spec_of(self, group: str) -> QuantizationSpec:
        """The spec to fit this group with."""
        bits = self.weight_bits.get(group)
        if bits is None:
            return self.spec
        return self.spec.model_copy(update={"scheme": f"W{bits}A{self.spec.bits.activation_bits}"})
