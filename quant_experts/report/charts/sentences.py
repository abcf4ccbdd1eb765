"""The figures in words: the verdict, what the method gains, whether the model still looks at its images."""

from __future__ import annotations

import math
from typing import NamedTuple

from quant_experts.report.charts import numbers
from quant_experts.report.data import FEWEST_TOKENS, Interval, ModelQuality, QualityReport, Size, TaskEvaluation
from quant_experts.spec.choices import score_of

MOST_REPLIES = 48
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
    "min_exact_match": "exact match, at least",
    "max_exact_match_drop": "drop of exact match, at most",
    "min_edit_similarity": "edit similarity, at least",
    "max_edit_similarity_drop": "drop of edit similarity, at most",
    "min_multiple_choice": "multiple choice, at least",
    "max_multiple_choice_drop": "drop of multiple choice, at most",
}
SCORES = {
    "exact_match": "Exact match",
    "edit_similarity": "Edit similarity",
    "multiple_choice": "Multiple choice",
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
    name, is_drop = score_of(limit)
    if name is None:
        return report.images.smallest_ratio if report.images else None
    score = report.evaluation.score(name) if report.evaluation else None
    if score is None:
        return None
    if is_drop:
        return None if score.difference is None else -score.difference.value
    return score.quantized.value


def task(evaluation: TaskEvaluation) -> str:
    """One sentence: what the replies of both models are worth."""
    score = evaluation.score("multiple_choice") or evaluation.scores[0]
    is_whole = score.rows == evaluation.rows
    score = score if is_whole else evaluation.scores[0]
    name, now = SCORES[score.name], numbers.percent(score.quantized.value)
    rows = f"{score.rows} row{'s' if score.rows != 1 else ''}"
    if score.full is None or score.difference is None:
        return f"{name} of its replies to {rows}: {now}{_between(score.quantized)}."
    if score.difference.low <= 0 <= score.difference.high:
        doubt = ", within what the choice of rows explains"
    else:
        doubt = ", more than the choice of rows explains"
    if all(reply.full == reply.quantized for reply in evaluation.replies):
        doubt = "; every reply is the same"
    return f"{name} of the replies to {rows}: {numbers.percent(score.full.value)} before, {now} after{doubt}."


def _between(interval: Interval) -> str:
    return f" ({numbers.percent(interval.low)} to {numbers.percent(interval.high)})"


def shown_replies(evaluation: TaskEvaluation) -> list[int]:
    """Indices of the replies that a page shows: those whose scores fell first, then those that changed, then others."""

    def order(index: int) -> tuple[float, bool, int]:
        reply = evaluation.replies[index]
        fell = sum(reply.scores_quantized.values()) - sum((reply.scores_full or reply.scores_quantized).values())
        return fell, reply.full in (None, reply.quantized), index

    return sorted(range(len(evaluation.replies)), key=order)[:MOST_REPLIES]
