"""Each measurement at most once per run: what an earlier attempt wrote down is taken over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from quant_experts.blueprint import Blueprint
from quant_experts.calls import Calls
from quant_experts.config import QuantizationSpec
from quant_experts.groups import GroupPlan
from quant_experts.problem import ModalityWeights
from quant_experts.progress import OnEvent, ShouldStop, WrittenFile
from quant_experts.report import GroupSensitivity
from quant_experts.sensitivity.gradients import measure_gradients
from quant_experts.sensitivity.record import read_record, write_record
from quant_experts.sensitivity.rounding_change import measure_rounding_change

GRADIENTS = "gradients.json"


@dataclass(frozen=True)
class Measuring:
    """Where and for whom sensitivity is measured; ``files``: the records so far, for a resume on another machine."""

    blueprint: Blueprint
    plans: Sequence[Sequence[GroupPlan]]
    calls: Calls
    work: Path
    fingerprint: str
    on_event: OnEvent
    should_stop: ShouldStop
    files: dict[str, WrittenFile] = field(default_factory=dict)

    def sensitivity(self, spec: QuantizationSpec) -> dict[str, GroupSensitivity]:
        """Of every group at the spec's scheme, measured once per run and scheme."""
        name = f"sensitivity-{spec.scheme}.json"
        found = read_record(self.work, name, self.fingerprint)
        if found is not None:
            self.files[name] = found[1]
            return {group: GroupSensitivity.model_validate(values) for group, values in found[0].items()}
        measured = measure_rounding_change(
            self.blueprint,
            self.plans,
            self.calls,
            spec,
            work=self.work,
            on_event=self.on_event,
            should_stop=self.should_stop,
        )
        content = {group: values.model_dump(mode="json") for group, values in measured.items()}
        self.files[name] = write_record(self.work, name, self.fingerprint, content)
        return measured

    def modality_weights(self, spec: QuantizationSpec) -> dict[str, ModalityWeights]:
        """Of every group, for the one smoothing that asks for them; else none. Measured once per run."""
        if spec.smoothing != "mbq":
            return {}
        found = read_record(self.work, GRADIENTS, self.fingerprint)
        if found is not None:
            self.files[GRADIENTS] = found[1]
            return {group: ModalityWeights(**values) for group, values in found[0].items()}
        measured = measure_gradients(
            self.blueprint,
            self.plans,
            self.calls,
            spec.seed,
            work=self.work,
            on_event=self.on_event,
            should_stop=self.should_stop,
        )
        content = {group: asdict(weights) for group, weights in measured.items()}
        self.files[GRADIENTS] = write_record(self.work, GRADIENTS, self.fingerprint, content)
        return measured
