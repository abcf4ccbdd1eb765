"""What each input group is to get: its bits, and what errors on its vision and text tokens count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from quant_experts.fit.problem import ModalityWeights
from quant_experts.report.data import GroupSensitivity, MixedPrecision
from quant_experts.spec.specification import QuantizationSpec


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
        return self.spec if bits is None else self.spec.with_weight_bits(bits)

    def fingerprint(self, run: str) -> str:
        """What finished blocks have to agree on to be taken over: the run, and what was decided while it ran.

        Should measurements be lost and come out differently elsewhere, no two decisions get mixed in one model.
        """
        if not (self.weight_bits or self.modality_weights):
            return run
        weights = {name: asdict(pair) for name, pair in self.modality_weights.items()}
        decided = [run, self.spec.scheme, dict(self.weight_bits), weights]
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
