"""Measure the whole model before the walk, and decide how each input group is fitted.

Most runs fit all groups alike and measure nothing. Mixed precision and modality-balanced methods need measurements.
Each is taken at most once per run: a resumed run reads what an earlier attempt recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from quant_experts.calibration.captured_inputs import CapturedInputs
from quant_experts.fit.problem import ModalityWeights
from quant_experts.model.run_context import RunContext
from quant_experts.progress import WrittenFile
from quant_experts.report.data import GroupSensitivity
from quant_experts.sensitivity.gradients import measure_gradients
from quant_experts.sensitivity.last_stack import last_stack_in_full_precision
from quant_experts.sensitivity.mixed_precision import assign
from quant_experts.sensitivity.record import read_record, write_record
from quant_experts.sensitivity.rounding_change import measure_rounding_change
from quant_experts.sensitivity.rows import few_rows
from quant_experts.sensitivity.transition import by_stack
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.group_settings import GroupSettings

GRADIENTS = "gradients.json"


@dataclass(frozen=True)
class SensitivityMeasurements:
    """``inputs``: of the first stack. ``files``: the records so far, for a resume on another machine."""

    context: RunContext
    inputs: CapturedInputs
    files: dict[str, WrittenFile] = field(default_factory=dict)

    def group_settings(self, spec: QuantizationSpec) -> GroupSettings:
        """Measure what the spec needs to know of the whole model, and decide for each group.

        Raises InvalidSpec as mixed_precision.check_mixed_precision does, NumericalFailure naming a group, Stopped.
        """
        modality_weights = self.modality_weights(spec)
        if spec.sensitive is None and spec.budget is None:
            return GroupSettings(spec, modality_weights=modality_weights)
        sensitivity = self.sensitivity(spec)
        kl = {name: values.kl for name, values in sensitivity.items()}
        assignment = assign(spec, self.context.plans, kl, self.context.blueprint.dtype)
        assert assignment is not None, "sensitive or budget was given"
        weight_bits, report = assignment
        return GroupSettings(spec, weight_bits, modality_weights, sensitivity, report)

    def sensitivity(self, spec: QuantizationSpec) -> dict[str, GroupSensitivity]:
        """Group name → its sensitivity at the spec's scheme."""
        content = self._recorded(
            f"sensitivity-{spec.scheme}.json",
            lambda: {
                group: values.model_dump(mode="json")
                for group, values in measure_rounding_change(self.context, self.inputs, spec).items()
            },
        )
        return {group: GroupSensitivity.model_validate(values) for group, values in content.items()}

    def modality_weights(self, spec: QuantizationSpec) -> dict[str, ModalityWeights]:
        """Group of the last stack → its weights, for the one smoothing that uses them; else none.

        In a vision tower or an encoder all tokens are of one modality, so that there is nothing to balance.
        """
        if spec.smoothing != "mbq" or self.context.blueprint.manifest.encoder is not None:
            return {}
        content = self._recorded(
            GRADIENTS, lambda: {group: asdict(weights) for group, weights in self._gradients(spec.seed).items()}
        )
        return {group: ModalityWeights(**values) for group, values in content.items()}

    def _recorded(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the record ``name`` holds; measured and recorded now when there is none."""
        work, fingerprint = self.context.work, self.context.fingerprint
        record = read_record(work, name, fingerprint)
        if record is None:
            content = measure()
            record = content, write_record(work, name, fingerprint, content)
        content, self.files[name] = record
        return content

    def _gradients(self, seed: int) -> dict[str, ModalityWeights]:
        stacks = by_stack(self.context.plans)
        few = replace(self.inputs, rows=few_rows(self.inputs, seed), variants=())
        last = nullcontext(few) if len(stacks) == 1 else last_stack_in_full_precision(self.context, few)
        with last as inputs:
            return measure_gradients(replace(self.context, plans=stacks[-1]), inputs)
