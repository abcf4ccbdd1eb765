"""How each input group is fitted: its bits, and the weights of errors on its vision and text tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from quant_experts.fit.problem import ModalityWeights
from quant_experts.model.tensor_file import json_digest
from quant_experts.report.data import GroupSensitivity, MixedPrecision
from quant_experts.spec.specification import QuantizationSpec


@dataclass(frozen=True)
class GroupSettings:
    """Mappings from full group names. For a group that a mapping lacks, the spec decides.

    ``weight_bits``: of the groups with more bits than the scheme's. ``modality_weights``, ``sensitivity``: as measured.
    """

    spec: QuantizationSpec
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    modality_weights: Mapping[str, ModalityWeights] = field(default_factory=dict)
    sensitivity: Mapping[str, GroupSensitivity] = field(default_factory=dict)
    mixed_precision: MixedPrecision | None = None

    def spec_of(self, group: str) -> QuantizationSpec:
        """The spec to fit this group with."""
        bits = self.weight_bits.get(group)
        return self.spec if bits is None else self.spec.with_weight_bits(bits)

    def fingerprint(self, run: str) -> str:
        """The fingerprint under which blocks are stored: of the run, and of the decisions that it took.

        Measurements that were lost may come out differently on another machine. Blocks of two decisions must not meet
        in one model.
        """
        if not (self.weight_bits or self.modality_weights):
            return run
        weights = {name: asdict(pair) for name, pair in self.modality_weights.items()}
        parts = [run, self.spec.scheme, dict(self.weight_bits), weights]
        return json_digest(parts)
