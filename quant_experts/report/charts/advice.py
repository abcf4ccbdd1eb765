"""Advice for an input group, computed from its figures. Every sentence gives the number behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from quant_experts.report.charts.kinds import short_name
from quant_experts.report.charts.numbers import number, percent
from quant_experts.report.data import GroupReport, MixedPrecision, QualityReport

MOST = 3
"""Sentences per group."""
LOPSIDED = 2.0
"""One modality loses this many times what the other does."""
USELESS = 0.97
"""A stage that leaves more than this share of the error before it does next to nothing."""
USEFUL = 0.8
"""Experts that leave less than this are worth more rank."""
AGREEMENT = 0.8
"""Rank correlation of the halves below which they disagree."""
UNSEEN = 0.05
"""Share of tokens that lean on channels which calibration did not show."""
SENSITIVE = 0.1
"""The share of groups with the largest KL that counts as sensitive."""
STRONGEST_SEARCHED = "smoothquant(0.75)"
INT8_COST = 1.1
"""Error with int8 adapters, relative to bfloat16, from which the saving is not free."""


@dataclass(frozen=True)
class Context:
    """What the rules know beside the group: the run's options, and the sensitivities of all groups, largest first."""

    samples: int
    routed_rank: int | None
    """None where a budget of bytes has decided it."""
    kls: list[float]
    median_error: float
    mixed: MixedPrecision | None
    bits: float
    """Stored bits per weight of the whole checkpoint."""

    @classmethod
    def of(cls, report: QualityReport, recipe: Mapping[str, Any]) -> Context:
        groups = [group for block in report.blocks for group in block.groups]
        spec = recipe.get("spec") or {}
        return cls(
            samples=report.rows_used + report.rows_held_out,
            routed_rank=rank if isinstance(rank := spec.get("routed_rank"), int) else None,
            kls=sorted((group.sensitivity.kl for group in groups if group.sensitivity), reverse=True),
            median_error=median([group.error.routed for group in groups] or [0.0]),
            mixed=report.mixed_precision,
            bits=report.size.effective_bits,
        )


Rule = Callable[[GroupReport, Context], str | None]


class Advice(NamedTuple):
    """``action``: what to do, in the same words for every group that is advised so; ``reason``: with this one's
    figures."""

    action: str
    reason: str


def advice(group: GroupReport, context: Context) -> list[Advice]:
    """At most three pieces of advice, the most promising first. One that says so when nothing stands out."""
    pieces = [Advice(action, reason) for action, rule in RULES if (reason := rule(group, context)) is not None]
    if pieces:
        return pieces[:MOST]
    times = group.error.routed / context.median_error if context.median_error else 1.0
    comparison = f"it loses {number(times, 2)} times what the middle group does"
    return [Advice(MORE_BITS, f"No single cause stands out; {comparison}. {_keep(group, context)}")]


class AdviceEntry(NamedTuple):
    """``groups``: short names; ``reason``: of the first of them."""

    action: str
    groups: list[str]
    reason: str


def grouped(groups: Sequence[tuple[str, Sequence[Advice]]]) -> list[AdviceEntry]:
    """Each action once, the ones that most groups are advised first. ``groups``: short name and advice of each, the
    one with the largest error first."""
    by_action: dict[str, dict[str, str]] = {}
    for name, pieces in groups:
        for action, reason in pieces:
            by_action.setdefault(action, {}).setdefault(name, reason)
    entries = [
        AdviceEntry(action, list(reasons), next(iter(reasons.values()))) for action, reasons in by_action.items()
    ]
    return sorted(entries, key=lambda one: len(one.groups), reverse=True)


def _worse_than_rounding(group: GroupReport, context: Context) -> str | None:
    if group.error_rtn is None or group.error.routed <= group.error_rtn:
        return None
    return (
        f"Rounding alone loses less ({percent(group.error_rtn)} against {percent(group.error.routed)}): the statistics "
        f"mislead the fit. More calibration rows: --samples {2 * context.samples}."
    )


def _sensitive(group: GroupReport, context: Context) -> str | None:
    if group.sensitivity is None or (group.weight_bits or 0) >= 6 or not context.kls:
        return None
    place = context.kls.index(group.sensitivity.kl) + 1
    if place > max(1, SENSITIVE * len(context.kls)):
        return None
    return (
        f"Number {place} of {len(context.kls)} in sensitivity (KL {number(group.sensitivity.kl)} when only this group "
        f"is rounded). {_keep(group, context)}"
    )


def _keep(group: GroupReport, context: Context) -> str:
    """In the option that this run used, because each way of choosing groups excludes the others."""
    if (group.weight_bits or 0) >= 8:
        return "It is at 8 bits already."
    if context.mixed is not None and group.name in context.mixed.groups:
        return f"It is at {context.mixed.weight_bits} bits: --sensitive-bits 8 keeps it at 8."
    if context.mixed is None:
        return f"Keep it at 8 bits: --sensitive-groups {short_name(group.name)}."
    if context.mixed.decided_by == "names":
        return f"Keep it at {context.mixed.weight_bits} bits too: add --sensitive-groups {short_name(group.name)}."
    if context.mixed.decided_by == "share":
        return f"A larger share may keep it at more bits: --sensitive-share {min(1.0, 2 * context.mixed.share):.2g}."
    return f"A larger budget may keep it at more bits: --bits-per-weight {context.bits + 0.5:.1f}."


def _lopsided(group: GroupReport, context: Context) -> str | None:
    if group.error_vision is None or group.error_text is None:
        return None
    vision, text = group.error_vision.routed, group.error_text.routed
    if min(vision, text) <= 0 or max(vision, text) < LOPSIDED * min(vision, text):
        return None
    if vision > text:
        return (
            f"Vision tokens lose {number(vision / text, 2)} times what text tokens lose: calibrate with more rows that "
            "have images, or with larger images."
        )
    return (
        f"Text tokens lose {number(text / vision, 2)} times what vision tokens lose: calibrate with longer answers or "
        "more rows of text."
    )


def _disagreeing_halves(group: GroupReport, context: Context) -> str | None:
    agreement = group.channels.split_half if group.channels else None
    if agreement is None or agreement >= AGREEMENT:
        return None
    return (
        f"Two halves of the calibration rows disagree about which channels matter (rank correlation "
        f"{number(agreement, 2)}): --samples {2 * context.samples}."
    )


def _unseen(group: GroupReport, context: Context) -> str | None:
    unseen = group.channels.unseen_share if group.channels else None
    if unseen is None or unseen < UNSEEN:
        return None
    return (
        f"{percent(unseen)} of held-out tokens lean on channels that calibration never showed as important: "
        "calibrate with more varied rows."
    )


def _idle_experts(group: GroupReport, context: Context) -> str | None:
    idle = sum(share == 0 for share in group.expert_usage)
    if not idle:
        return None
    return f"{idle} of {len(group.expert_usage)} experts get no token: --experts {len(group.expert_usage) - idle}."


def _idle_routing(group: GroupReport, context: Context) -> str | None:
    experts = len(group.expert_usage)
    if experts < 2 or group.error.shared <= 0 or group.error.routed < USELESS * group.error.shared:
        return None
    gain = max(0.0, 1 - group.error.routed / group.error.shared)
    return (
        f"The routed experts remove only {percent(gain)} of what the shared expert leaves: fewer of them "
        f"(--experts {max(1, experts // 2)}), or more rows to fit them on (--samples {2 * context.samples})."
    )


def _more_rank(group: GroupReport, context: Context) -> str | None:
    if not group.expert_usage or context.routed_rank is None or group.error.shared <= 0:
        return None
    share = group.error.routed / group.error.shared
    if share > USEFUL or group.error.routed <= context.median_error:
        return None
    return (
        f"The routed experts help here (they remove {percent(1 - share)} of what the shared expert leaves): "
        f"--routed-rank {2 * context.routed_rank} would remove more."
    )


def _strongest_smoothing(group: GroupReport, context: Context) -> str | None:
    if group.smoothing != STRONGEST_SEARCHED:
        return None
    return (
        "The search took its strongest scaling, α = 0.75: outliers of the activations rule this group. "
        "Activations of 8 bits (--scheme W4A8) relieve it, or --smoothing smoothquant --smoothquant-alpha 0.9 in all "
        "groups."
    )


def _cheap_adapters(group: GroupReport, context: Context) -> str | None:
    if group.error_bf16 is None or group.error_bf16 <= 0 or group.error.routed < INT8_COST * group.error_bf16:
        return None
    increase = group.error.routed / group.error_bf16 - 1
    return f"Adapters in int8 cost {percent(increase)} more error here than in bfloat16: --adapter-dtype bf16."


MORE_ROWS, MORE_BITS = "Calibrate with more rows", "Keep groups at more bits"
RULES: tuple[tuple[str, Rule], ...] = (
    (MORE_ROWS, _worse_than_rounding),
    (MORE_BITS, _sensitive),
    ("Balance images and text in the rows", _lopsided),
    (MORE_ROWS, _disagreeing_halves),
    ("Calibrate with more varied rows", _unseen),
    ("Take fewer experts", _idle_experts),
    ("Take fewer experts, or more rows to fit them on", _idle_routing),
    ("Relieve the activations", _strongest_smoothing),
    ("Store adapters in bfloat16", _cheap_adapters),
    ("Give the routed experts more rank", _more_rank),
)
