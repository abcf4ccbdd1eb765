"""Is the calibration data good enough? Sentences with numbers, from figures that the run measures anyway.

Thresholds (``thin`` / ``poor``), each with its reason. Those of agreement and unseen share lie between what rows of the
trained model in ``benchmarks/digits`` gave: 4, 8, 16, 32, 64 and 120 rows have a mean agreement of 0.84, 0.86, 0.95,
0.95, 0.98 and 0.98, and an unseen share of 11, 3.3, 2.0, 0.6, 0.4 and 0.1 %.

- rows to fit, 32 / 8: the published method uses 128; under 8 rows one of them decides about a channel.
- tokens over the widest input, 4 / 1 times: with fewer tokens than channels the second moment has no full rank, and the
  adapters fit directions that no token ever took.
- split-half agreement, 0.9 / 0.7: rank correlation of the channels' frequencies in two halves of the rows, mean over
  groups; both halves would choose about the same token-independent channels above it.
- unseen share, 1 % / 10 %: held-out tokens with an important channel that no calibration token had.
- one-sided: text under 2 % of the tokens (a caption beside a photograph is above), image tokens of a vision model under
  5 % (thin); no image for a vision model, or all rows the same (poor).
- copies: over half of the rows are repetitions, or held-out rows are among those that were fitted on (thin).
- idle experts, a quarter of all: paid for in bytes, used by no held-out token (thin).
- rows held out, 4: fewer give a KL without a usable standard error (thin).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow
from quant_experts.report.data import BlockReport, CalibrationQuality, ChannelStatistics, GroupReport

NO_IMAGE = (
    "no calibration row has an image: image tokens of this model were never observed; give rows with images like "
    "those that it will see"
)

Verdict = Literal["good", "thin", "poor"]


@dataclass(frozen=True)
class _Bounds:
    """A figure past ``thin`` or ``poor`` in the bad direction gives that verdict."""

    thin: float
    poor: float

    def below(self, value: float) -> Verdict:
        return "poor" if value < self.poor else "thin" if value < self.thin else "good"

    def above(self, value: float) -> Verdict:
        return "poor" if value > self.poor else "thin" if value > self.thin else "good"


ROWS = _Bounds(thin=32, poor=8)
TOKENS_PER_CHANNEL = _Bounds(thin=4, poor=1)
SPLIT_HALF = _Bounds(thin=0.9, poor=0.7)
UNSEEN = _Bounds(thin=0.01, poor=0.1)
TEXT_SHARE, IMAGE_SHARE = 0.02, 0.05
COPIES = 0.5
IDLE = 0.25
HELD_OUT_ROWS = 4

_ORDER: tuple[Verdict, ...] = ("good", "thin", "poor")


def judge_calibration(
    blocks: Sequence[BlockReport], inputs: CapturedInputs, *, widest: int, takes_images: bool
) -> CalibrationQuality:
    """``widest``: input channels of the widest group; ``takes_images``: whether the model has a vision tower."""
    groups = [group for block in blocks for group in block.groups]
    split_half = _Summary.of(groups, lambda channels: channels.split_half, worst=min)
    unseen = _Summary.of(groups, lambda channels: channels.unseen_share, worst=max)
    idle, experts = _idle(groups)
    findings = [
        *_about_amount(inputs, widest),
        *_about_sides(inputs, takes_images),
        *_about_copies(inputs),
        *_about_channels(split_half, unseen),
        *_about_experts(idle, experts),
    ]
    return CalibrationQuality(
        verdict=max((verdict for verdict, _ in findings), key=_ORDER.index, default="good"),
        reasons=[reason for _, reason in findings],
        split_half_mean=split_half.mean,
        split_half_worst=split_half.worst,
        split_half_worst_group=split_half.worst_group,
        unseen_share_mean=unseen.mean,
        unseen_share_worst=unseen.worst,
        unseen_share_worst_group=unseen.worst_group,
        idle_experts=idle,
        experts=experts,
    )


Finding = tuple[Verdict, str]


@dataclass(frozen=True)
class _Summary:
    """Of one figure over the groups that have it."""

    mean: float | None = None
    worst: float | None = None
    worst_group: str | None = None

    @classmethod
    def of(
        cls,
        groups: Sequence[GroupReport],
        figure: Callable[[ChannelStatistics], float | None],
        *,
        worst: Callable[..., tuple[float, str]],
    ) -> _Summary:
        counts = [(group.channels, group.name) for group in groups if group.channels is not None]
        figures = [(value, name) for channels, name in counts if (value := figure(channels)) is not None]
        if not figures:
            return cls()
        value, name = worst(figures, key=lambda pair: pair[0])
        return cls(sum(value for value, _ in figures) / len(figures), value, name)


def _about_amount(inputs: CapturedInputs, widest: int) -> Iterator[Finding]:
    rows, tokens = len(inputs.fit), sum(row.tokens for row in inputs.fit)
    if (verdict := ROWS.below(rows)) != "good":
        yield verdict, f"only {_counted(rows)} fitted on; give at least {ROWS.thin:g} rows, 128 are usual"
    if (verdict := TOKENS_PER_CHANNEL.below(tokens / widest)) != "good":
        yield (
            verdict,
            f"{tokens} calibration tokens for inputs of up to {widest} channels; give at least "
            f"{TOKENS_PER_CHANNEL.thin:g} tokens per channel",
        )
    if len(inputs.held_out) < HELD_OUT_ROWS:
        yield (
            "thin",
            f"only {_counted(len(inputs.held_out))} held out, so that every figure of this report is uncertain; give "
            "more rows or raise `holdout`",
        )


def _about_sides(inputs: CapturedInputs, takes_images: bool) -> Iterator[Finding]:
    vision = sum(row.tokens_vision for row in inputs.fit)
    tokens = sum(row.tokens for row in inputs.fit)
    if takes_images and not vision:
        yield "poor", NO_IMAGE
    elif takes_images and vision < IMAGE_SHARE * tokens:
        yield (
            "thin",
            f"only {vision / tokens:.1%} of the calibration tokens are image tokens; give more rows with images",
        )
    if tokens - vision < TEXT_SHARE * tokens:
        yield (
            "thin",
            f"only {1 - vision / tokens:.1%} of the calibration tokens are text; give rows with longer answers, or "
            "smaller images",
        )


def _about_copies(inputs: CapturedInputs) -> Iterator[Finding]:
    fit = [row.digest for row in inputs.fit]
    distinct = len(set(fit))
    if distinct == 1 < len(fit):
        yield "poor", f"all {len(fit)} calibration rows are the same; give rows that differ as real requests do"
    elif distinct <= COPIES * len(fit):
        yield "thin", f"only {distinct} of {len(fit)} calibration rows are different; remove the copies and give others"
    if copies := [row for row in inputs.held_out if row.digest in set(fit)]:
        yield (
            "thin",
            f"{len(copies)} of {len(inputs.held_out)} held-out rows are copies of rows that were fitted on "
            f"({_rows(copies)}), so that the report is too good; remove the copies",
        )


def _counted(rows: int) -> str:
    return "1 row was" if rows == 1 else f"{rows} rows were"


def _rows(inputs: Sequence[CapturedRow]) -> str:
    numbers = [str(row.number) for row in inputs[:5]]
    return ("row " if len(inputs) == 1 else "rows ") + ", ".join(numbers) + (", …" if len(inputs) > 5 else "")


def _about_channels(split_half: _Summary, unseen: _Summary) -> Iterator[Finding]:
    if split_half.mean is not None and (verdict := SPLIT_HALF.below(split_half.mean)) != "good":
        yield (
            verdict,
            f"two halves of the rows agree on which channels matter with a rank correlation of only "
            f"{split_half.mean:.2f} on average ({split_half.worst:.2f} at {split_half.worst_group}); give more rows",
        )
    if unseen.mean is not None and (verdict := UNSEEN.above(unseen.mean)) != "good":
        yield (
            verdict,
            f"{unseen.mean:.1%} of the held-out tokens have an important channel that no calibration token had "
            f"({unseen.worst:.1%} at {unseen.worst_group}); give more rows, and rows of more kinds",
        )


def _about_experts(idle: int, experts: int) -> Iterator[Finding]:
    if experts and idle >= IDLE * experts:
        yield (
            "thin",
            f"{idle} of {experts} routed experts were chosen by no held-out token; give more rows of more kinds, or "
            "fewer `experts`",
        )


def _idle(groups: Sequence[GroupReport]) -> tuple[int, int]:
    """Experts without a held-out token, and all experts, over all groups."""
    shares = [share for group in groups for share in group.expert_usage]
    return sum(share == 0 for share in shares), len(shares)
