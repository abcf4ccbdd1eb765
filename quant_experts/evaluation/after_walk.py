"""Everything that is measured behind the last block, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quant_experts.calibration.captured_inputs import CapturedInputs
from quant_experts.checkpoint.verify import Probe
from quant_experts.errors import NumericalFailure
from quant_experts.evaluation.calibration_quality import judge_calibration
from quant_experts.evaluation.image_sensitivity import measure_image_sensitivity, warning_about
from quant_experts.evaluation.next_token import evaluate
from quant_experts.evaluation.replies import compare_replies
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.run_context import RunContext
from quant_experts.report.data import BlockReport, CalibrationQuality, ImageSensitivity, ModelQuality, Reply
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.baseline import is_baseline
from quant_experts.walk.lent_tokens import LEAST_TOKENS


@dataclass(frozen=True)
class Measurements:
    """``probe``: what the written checkpoint must reproduce; ``warnings``: plain sentences for the report."""

    quality: ModelQuality
    probe: Probe | None
    baseline: ModelQuality | None
    images: ImageSensitivity | None
    calibration: CalibrationQuality
    warnings: tuple[str, ...]
    replies: list[Reply]


def measure_run(
    context: RunContext, inputs: CapturedInputs, blocks: Sequence[BlockReport], spec: QuantizationSpec
) -> Measurements:
    """Measure the walked model. ``inputs``: of the last stack.

    Raises NumericalFailure when a logit is not finite, InvalidCalibration when no held-out row has text."""
    blueprint, work = context.blueprint, context.work
    quality, probe = evaluate(blueprint, inputs, work)
    baseline, warnings = (quality, ()) if is_baseline(spec) else _evaluate_baseline(blueprint, inputs, work)
    images = measure_image_sensitivity(blueprint, inputs, work)
    image_warning = None if images is None else warning_about(images)
    calibration = judge_calibration(
        blocks,
        inputs,
        widest=max(plan.width for block in context.plans for plan in block),
        takes_images=blueprint.manifest.takes_images,
    )
    others = (image_warning, lent_to_experts(blocks))
    warnings = (*calibration.reasons, *warnings, *(each for each in others if each))
    return Measurements(
        quality, probe, baseline, images, calibration, warnings, compare_replies(blueprint, inputs, work)
    )


def lent_to_experts(blocks: Sequence[BlockReport]) -> str | None:
    """What the report says of experts of a mixture that got too few tokens of their own."""
    counts = [
        group.tokens_routed
        for block in blocks
        for group in block.groups
        if group.tokens_routed is not None and group.layers[0].startswith("down_proj")
    ]
    few = [count for count in counts if count < LEAST_TOKENS]
    if not few:
        return None
    return (
        f"mixture: the routers sent fewer than {LEAST_TOKENS} calibration tokens to {len(few)} of {len(counts)} "
        f"experts, {min(few)} to the one with the fewest; these were fitted on tokens of their layer too, and more "
        "rows help them"
    )


def _evaluate_baseline(
    blueprint: Blueprint, inputs: CapturedInputs, work: Path
) -> tuple[ModelQuality | None, tuple[str, ...]]:
    """The baseline's quality and warnings. A baseline that overflows does not end the run."""
    try:
        return evaluate(blueprint, inputs, work, stream="baseline")[0], ()
    except NumericalFailure as error:
        return None, (f"rounded to nearest the model gives no finite logits: nothing to compare with ({error})",)
