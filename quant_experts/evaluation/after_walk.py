"""Everything that is measured behind the last block, before the report is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quant_experts.calibration.captured_inputs import Calls
from quant_experts.checkpoint.verify import Probe
from quant_experts.errors import NumericalFailure
from quant_experts.evaluation.calibration_quality import judge_calibration
from quant_experts.evaluation.image_sensitivity import measure_image_sensitivity, warning_about
from quant_experts.evaluation.next_token import evaluate
from quant_experts.evaluation.replies import compare_replies
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.groups import GroupPlan
from quant_experts.report.data import BlockReport, CalibrationQuality, ImageSensitivity, ModelQuality, Reply
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.baseline import is_baseline


@dataclass(frozen=True)
class Measured:
    """``probe``: what the written checkpoint must reproduce; ``warnings``: plain sentences for the report."""

    quality: ModelQuality
    probe: Probe | None
    baseline: ModelQuality | None
    images: ImageSensitivity | None
    calibration: CalibrationQuality
    warnings: tuple[str, ...]
    replies: list[Reply]


def measure_run(
    blueprint: Blueprint,
    plans: Sequence[Sequence[GroupPlan]],
    calls: Calls,
    blocks: Sequence[BlockReport],
    spec: QuantizationSpec,
    work: Path,
) -> Measured:
    """Raises NumericalFailure when a logit is not finite, InvalidCalibration when no held-out row has text."""
    quality, probe = evaluate(blueprint, calls, work)
    baseline, warnings = (quality, ()) if is_baseline(spec) else _evaluate_baseline(blueprint, calls, work)
    images = measure_image_sensitivity(blueprint, calls, work)
    about_images = None if images is None else warning_about(images)
    calibration = judge_calibration(
        blocks,
        calls,
        widest=max(plan.width for block in plans for plan in block),
        takes_images=blueprint.manifest.takes_images,
    )
    found = (*calibration.reasons, *warnings, *((about_images,) if about_images else ()))
    return Measured(quality, probe, baseline, images, calibration, found, compare_replies(blueprint, calls, work))


def _evaluate_baseline(blueprint: Blueprint, calls: Calls, work: Path) -> tuple[ModelQuality | None, tuple[str, ...]]:
    """The baseline's quality and warnings; where it overflows, that is no reason to end a run that does not."""
    try:
        return evaluate(blueprint, calls, work, stream="baseline")[0], ()
    except NumericalFailure as error:
        return None, (f"rounded to nearest the model gives no finite logits: nothing to compare with ({error})",)
