"""The figures in words: the verdict, what the method gains, whether the model still looks at its images."""

from __future__ import annotations

import math
from typing import NamedTuple

from quant_experts.report.charts import numbers
from quant_experts.report.data import FEWEST_TOKENS, ModelQuality, QualityReport, Size

NOTHING = 1e-9
"""A KL below this is arithmetic noise."""

CALIBRATION = {
    "good": "The calibration data is good enough: nothing below asks for more or for other rows.",
    "thin": "The calibration data is thin: the result would likely gain from more or from other rows.",
    "poor": "The calibration data is poor: do not trust this result beyond inputs like these rows.",
}
IMAGES = {
    "keeps_looking": "The quantized model still looks: another image changes its answer as it does in full precision.",
    "looks_less": "The quantized model looks less: another image changes its answer less than in full precision.",
    "looks_away": "The quantized model looks away: it answers nearly the same whatever the image shows. "
    "Do not ship it.",
    "never_looked": "On these rows even the full-precision model does not react to the image, so that nothing can be "
    "said: hold out rows whose answer depends on the picture.",
}
LIMITS = {
    "max_kl": "KL, nats per token, at most",
    "min_top1_agreement": "same next token, at least",
    "max_perplexity_increase": "perplexity increase, at most",
    "min_image_sensitivity": "reaction to another image, relative, at least",
}
DECIDED = {
    "names": "They were named in the recipe.",
    "share": "They are the most sensitive ones up to the share asked for.",
    "budget": "They are the most sensitive ones that the budget of bits pays for.",
}


class Gain(NamedTuple):
    """What the method gains over rounding alone. ``removed``: share of its KL; None when there is none to remove."""

    sentence: str
    removed: float | None


def verdict(report: QualityReport) -> str:
    """One sentence: how far the quantized model is from the full-precision one, and what it weighs."""
    quality, size = report.quality, report.size
    share = size.bytes_after / size.bytes_before
    agreement = numbers.percent(quality.top1_agreement)
    return (
        f"{_judgement(report)}n held-out rows the quantized model picks the same next token {agreement} of the time; "
        f"{_perplexity(quality)}it takes {100 * share:.0f} % of the bytes, {size.effective_bits:.2f} bits per "
        "quantized weight."
    )


def _perplexity(quality: ModelQuality) -> str:
    if not quality.tells_perplexity:
        return ""
    change = quality.perplexity_quantized / quality.perplexity_full - 1
    return (
        f"perplexity goes from {numbers.number(quality.perplexity_full, 4)} to "
        f"{numbers.number(quality.perplexity_quantized, 4)} ({numbers.change(change)}); "
    )


def few_tokens(quality: ModelQuality) -> str:
    """Why no perplexity is shown; empty where it is."""
    if quality.tells_perplexity:
        return ""
    return f"Perplexity is not shown: it means something from {FEWEST_TOKENS:,} tokens on."


def _judgement(report: QualityReport) -> str:
    """Up to the first letter of what follows, "on held-out rows"."""
    if report.acceptance is None:
        return "O"
    limits, misses = len(report.acceptance.limits), len(report.acceptance.missed)
    if report.acceptance.verdict == "accepted":
        all_limits = {1: "the limit is", 2: "both limits are"}.get(limits, f"all {limits} limits are")
        return f"Accepted ({all_limits} kept): o"
    return f"Rejected ({'its limit' if limits == 1 else f'{misses} of {limits} limits'} missed): o"


def bought(report: QualityReport) -> Gain | None:
    """Against rounding to nearest at the same bits on the same rows; None when that was not measured."""
    if report.baseline is None:
        return None
    kl, baseline = report.quality.kl, report.baseline.kl
    if baseline <= NOTHING:
        return Gain("Rounding alone loses nothing that these rows can show, so there was nothing to win back.", None)
    share = 1 - kl / baseline
    if report.method == "rtn" or report.baseline == report.quality:
        return Gain("This is rounding to nearest: there is nothing that it could have won over itself.", share)
    if share > 0:
        what = f"{report.method} removes {numbers.percent(share)} of the KL that rounding alone loses"
    else:
        what = (
            f"{report.method} loses {numbers.percent(-share)} more KL than rounding alone: "
            "on these rows it is not worth its bits"
        )
    return Gain(f"{what}{_price(report.size)}.{_doubt(report.quality, report.baseline)}", share)


def _price(size: Size) -> str:
    extra = size.effective_bits - size.base_bits
    if extra < 0.005:
        return ""
    added_size = numbers.size(added_bytes(size))
    return f"; what it adds to the integers takes {numbers.bits(extra)} bits per quantized weight, {added_size}"


def added_bytes(size: Size) -> int:
    """Of adapters, routers and smoothing: what rounding alone would not store."""
    return round((size.effective_bits - size.base_bits) * size.quantized_weights / 8)


def memory(size: Size) -> str:
    """What a loaded model takes; empty for reports from before that was known."""
    if size.bytes_loaded is None or size.bytes_unpacked is None:
        return ""
    return (
        f"Loaded, its tensors take {numbers.size(size.bytes_loaded)} of memory, and "
        f"{numbers.size(size.bytes_unpacked)} more while the largest layer runs, whose weights are unpacked then."
    )


def _doubt(quality: ModelQuality, baseline: ModelQuality) -> str:
    if quality.kl_standard_error is None or baseline.kl_standard_error is None:
        return ""
    error = math.hypot(quality.kl_standard_error, baseline.kl_standard_error)
    if abs(baseline.kl - quality.kl) >= 2 * error:
        return ""
    return (
        f" The difference of {numbers.number(abs(baseline.kl - quality.kl))} is within two standard errors "
        f"({numbers.number(2 * error)}): hold out more rows before relying on it."
    )


def measured(report: QualityReport, limit: str) -> float | None:
    """The figure that a limit of ``accept_if`` is held against."""
    quality = report.quality
    if limit == "max_kl":
        return quality.kl
    if limit == "min_top1_agreement":
        return quality.top1_agreement
    if limit == "max_perplexity_increase":
        return quality.perplexity_quantized / quality.perplexity_full - 1
    return report.images.smallest_ratio if report.images else None
