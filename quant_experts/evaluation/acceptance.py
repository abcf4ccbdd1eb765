"""Compare a finished report with the user's limits. They decide its verdict; the checkpoint stays in either case."""

from __future__ import annotations

from quant_experts.report.data import Acceptance, QualityReport
from quant_experts.spec.choices import score_of
from quant_experts.spec.specification import AcceptIf

ROUNDING = 1e-9
"""Means of shares are off by the last bit of a float."""


def judge(report: QualityReport, accept_if: AcceptIf) -> Acceptance:
    """Accepted when every limit is kept. A limit on a figure that was not measured is missed."""
    limits = accept_if.model_dump(exclude_none=True)
    checks = {
        "max_kl": _kl,
        "min_top1_agreement": _agreement,
        "max_perplexity_increase": _perplexity,
        "min_image_sensitivity": _images,
    }
    found = (
        checks[name](report, limit) if name in checks else _score(report, name, limit) for name, limit in limits.items()
    )
    sentences = [sentence for sentence in found if sentence is not None]
    return Acceptance(limits=limits, verdict="rejected" if sentences else "accepted", missed=sentences)


def _score(report: QualityReport, limit_name: str, limit: float) -> str | None:
    """Of the score itself, not of an end of its interval, as with every other limit."""
    name, is_drop = score_of(limit_name)
    words = str(name).replace("_", " ")
    if report.evaluation is None:
        return f"{words} was not measured, because no replies could be made: the limit of {limit:.2%} cannot be kept"
    score = report.evaluation.score(str(name))
    if score is None:
        return (
            f"{words} was not measured, because no row of the evaluation has choices: the limit of {limit:.2%} cannot "
            "be kept"
        )
    if not is_drop:
        value = score.quantized.value
        if value >= limit - ROUNDING:
            return None
        return f"{words} is {value:.2%} of {score.rows} rows, under the limit of {limit:.2%}"
    if score.full is None or score.difference is None:
        return f"the drop of {words} was not measured, because the original was left out"
    if -score.difference.value <= limit + ROUNDING:
        return None
    return (
        f"{words} drops by {-score.difference.value:.2%} of {score.rows} rows (from {score.full.value:.2%} to "
        f"{score.quantized.value:.2%}), over the limit of {limit:.2%}"
    )


def _kl(report: QualityReport, limit: float) -> str | None:
    value = report.quality.kl
    return None if value <= limit else f"KL is {value:.4g} nats per token, over the limit of {limit:g}"


def _agreement(report: QualityReport, limit: float) -> str | None:
    value = report.quality.top1_agreement
    if value >= limit:
        return None
    return f"the most likely next token agrees at {value:.2%} of the positions, under the limit of {limit:.2%}"


def _perplexity(report: QualityReport, limit: float) -> str | None:
    full, quantized = report.quality.perplexity_full, report.quality.perplexity_quantized
    increase = quantized / full - 1
    if increase <= limit:
        return None
    return f"perplexity rises by {increase:.2%} (from {full:.4g} to {quantized:.4g}), over the limit of {limit:.2%}"


def _images(report: QualityReport, limit: float) -> str | None:
    if report.images is None:
        return (
            f"image sensitivity was not measured, because no held-out row has an image: the limit of {limit:.2%} "
            "cannot be kept; give calibration rows with images"
        )
    ratio = report.images.smallest_ratio
    if ratio is None:
        return (
            "image sensitivity has no ratio, because the full-precision model itself does not react to the images of "
            f"the held-out rows: the limit of {limit:.2%} cannot be kept"
        )
    if ratio >= limit:
        return None
    return f"the reaction to another image is {ratio:.2%} of the full-precision model's, under the limit of {limit:.2%}"
