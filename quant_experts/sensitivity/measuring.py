"""Each measurement at most once per run: what an earlier attempt wrote down is taken over."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from quant_experts.calibration.captured_inputs import Calls
from quant_experts.fit.problem import ModalityWeights
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.groups import GroupPlan
from quant_experts.progress import OnEvent, ShouldStop, WrittenFile
from quant_experts.report.data import GroupSensitivity
from quant_experts.sensitivity.border import by_stack
from quant_experts.sensitivity.gradients import measure_gradients
from quant_experts.sensitivity.last_stack import calls_of_the_last_stack
from quant_experts.sensitivity.record import read_record, write_record
from quant_experts.sensitivity.rounding_change import measure_rounding_change
from quant_experts.sensitivity.rows import few_rows
from quant_experts.spec.specification import QuantizationSpec

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
        """Of every group of the last stack, for the one smoothing that asks for them; else none. Measured once per run.

        In a vision tower or an encoder all tokens are of one modality: there is nothing to balance.
        """
        if spec.smoothing != "mbq" or self.blueprint.manifest.encoder is not None:
            return {}
        found = read_record(self.work, GRADIENTS, self.fingerprint)
        if found is not None:
            self.files[GRADIENTS] = found[1]
            return {group: ModalityWeights(**values) for group, values in found[0].items()}
        measured = self._gradients(spec.seed)
        content = {group: asdict(weights) for group, weights in measured.items()}
        self.files[GRADIENTS] = write_record(self.work, GRADIENTS, self.fingerprint, content)
        return measured

    def _gradients(self, seed: int) -> dict[str, ModalityWeights]:
        stacks = by_stack(self.plans)
        calls = replace(self.calls, rows=few_rows(self.calls, seed), variants=())
        with (
            nullcontext(calls)
            if len(stacks) == 1
            else calls_of_the_last_stack(self.blueprint, self.plans, calls, self.work, self.should_stop)
        ) as calls:
            return measure_gradients(
                self.blueprint,
                stacks[-1],
                calls,
                work=self.work,
                on_event=self.on_event,
                should_stop=self.should_stop,
            )
