"""The quality report of a run as data: what was lost, where, and what it cost in bits.

The numbers are measured on held-out rows that were never used to fit. Errors are relative squared errors of a group's
output, ``||Y - Y'||² / ||Y||²``, of the quantized layers fed with the input that the quantized prefix gives them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageErrors(_Frozen):
    """Relative squared output error after each stage; a stage that the method does not have repeats the one before."""

    base: float
    shared: float
    routed: float


class FrequencyPoint(_Frozen):
    """One point of the channel-frequency curve of a group: channels sorted by how often they are important."""

    rank: int
    """1 is the channel that is important for most tokens."""
    share: float
    """Share of the group's calibration tokens for which this channel is among the important ones."""


class ChannelStatistics(_Frozen):
    """How far the calibration tokens tell which channels of a group matter."""

    independent: int
    """Channels that the shared expert takes over whole (token-independent)."""
    dependent: int
    """Channels that the routed experts are clustered over (token-dependent)."""
    curve: list[FrequencyPoint]
    """At most 64 points, ranks spaced evenly in their logarithm, first and last channel included."""
    split_half: float | None = None
    """Spearman rank correlation of the channels' frequencies in two halves of the calibration rows; 1 is agreement.
    None when one half saw no token or all channels are equally frequent."""
    unseen_share: float | None = None
    """Share of held-out tokens with at least one important channel that no calibration token had among its own."""


class GroupSensitivity(_Frozen):
    """Three measures of what quantizing a group costs, on full-precision activations."""

    mean_abs: float
    """Mean of |x| over the tokens and channels of the group's input."""
    variance: float
    """Variance of x over tokens and channels."""
    kl: float
    """Mean KL of the next-token distribution, nats per token, when only this group is rounded to nearest."""


class GroupReport(_Frozen):
    """One input group: the linear layers that read the same activation."""

    name: str
    """Full module path of the group, for example ``model.language_model.layers.0.self_attn.qkv``."""
    block: int
    layers: list[str]
    """Names of the linear layers within their parent module: ``["q_proj", "k_proj", "v_proj"]``."""
    tokens: int
    """Held-out tokens behind the errors."""
    error: StageErrors
    error_vision: StageErrors | None = None
    error_text: StageErrors | None = None
    sqnr_db: float
    """10 log10(||Y||² / ||Y - Y'||²) of the final stage."""
    expert_usage: list[float] = Field(default_factory=list)
    """Share of held-out tokens that the router sends to each expert; sums to 1."""
    smoothing: str
    """The scaling in force, with its parameter: ``none``, ``outlier``, ``smoothquant(0.5)``, ``rotation(0.25)``."""
    effective_bits: float
    """Stored bits per weight of this group: integers, scales, adapters, router, smoothing."""
    weight_bits: int | None = None
    """Of the integers; more than the scheme's where mixed precision kept the group at more."""
    error_rtn: float | None = None
    """What plain rounding to nearest at the same bits would lose on the same tokens."""
    error_bf16: float | None = None
    """The final error with adapters stored in bfloat16, when they are stored in int8."""
    effective_bits_bf16: float | None = None
    """Stored bits per weight with adapters in bfloat16, when they are stored in int8."""
    channels: ChannelStatistics | None = None
    sensitivity: GroupSensitivity | None = None
    tokens_routed: int | None = None
    """Of an expert of a mixture: calibration tokens that the router sent to it. None for other groups."""
    tokens_borrowed: int | None = None
    """Of an expert of a mixture: tokens of its layer that it was fitted on beside its own, because these were few."""
    warnings: list[str] = Field(default_factory=list)


class BlockReport(_Frozen):
    block: int
    """Number among all blocks that were walked."""
    stack: str | None = None
    """Where several stacks of blocks were walked, the one that this block belongs to: ``vision``, ``language model``,
    ``encoder``, ``decoder``."""
    index: int | None = None
    """Its number within the stack; None behind the stack's blocks, or for a single stack."""
    part: str | None = None
    """What lies behind the stack's blocks, by its own name: a vision tower's ``merger`` or ``projector``."""
    seconds: float
    seconds_by_phase: dict[str, float]
    """``observe fit forward write`` → seconds."""
    groups: list[GroupReport]


FEWEST_TOKENS = 1000
"""Held-out tokens from which a perplexity is shown. One token's log-likelihood varies by two or three nats, so that of
fewer the mean is not known to a tenth, and the perplexity to no better."""


class ModelQuality(_Frozen):
    """Next-token behaviour on held-out rows, the quantized model against the full-precision one."""

    rows: int
    tokens: int
    kl: float
    """Mean KL(full ‖ quantized) of the next-token distribution, nats per token."""
    top1_agreement: float
    perplexity_full: float
    perplexity_quantized: float
    kl_standard_error: float | None = None
    """Of the mean over rows; None for fewer than two rows."""

    @property
    def tells_perplexity(self) -> bool:
        return self.tokens >= FEWEST_TOKENS


class Reaction(_Frozen):
    """How much the next-token distribution moves when the image changes: mean KL, nats per token."""

    full: float
    quantized: float

    @property
    def ratio(self) -> float | None:
        """quantized / full; None when the full-precision model does not react either."""
        return self.quantized / self.full if self.full > 1e-9 else None


def smallest_ratio(*reactions: Reaction | None) -> float | None:
    """The smallest ratio of the reactions; None when the full-precision model shows none."""
    ratios = (reaction.ratio for reaction in reactions if reaction is not None)
    return min((ratio for ratio in ratios if ratio is not None), default=None)


class ImageSensitivity(_Frozen):
    """Does the quantized model still look? Held-out rows, their image swapped for another row's, or blanked."""

    rows: int
    tokens: int
    swapped: Reaction | None = None
    blanked: Reaction | None = None
    verdict: Literal["keeps_looking", "looks_less", "looks_away", "never_looked"]
    """``looks_less``: under 80 % of the full-precision reaction; ``looks_away``: under 50 %; ``never_looked``: the
    full-precision model itself does not react on these rows."""

    @property
    def smallest_ratio(self) -> float | None:
        """The ratio behind the verdict."""
        return smallest_ratio(self.swapped, self.blanked)


class Reply(_Frozen):
    """A held-out row in words. ``full`` and ``quantized``: at each place of the row's own ``answer`` the token that the
    model finds most likely after the words before it; nothing is generated."""

    row: int
    """Number of the calibration row."""
    question: str
    answer: str
    full: str
    quantized: str
    agreement: float
    """Share of places where both say the same token."""


class Interval(_Frozen):
    """A figure with its 95 % interval over rows."""

    value: float
    low: float
    high: float


class TaskScore(_Frozen):
    """A score of the evaluation, 0 to 1, mean over ``rows`` rows."""

    name: Literal["exact_match", "edit_similarity", "multiple_choice"]
    rows: int
    full: Interval | None = None
    """Of the original; None when it was left out."""
    quantized: Interval
    difference: Interval | None = None
    """Quantized minus full, by the paired bootstrap over rows."""


class TaskReply(_Frozen):
    """What both models generated for one row. Texts are cut to 4,000 characters; scores are of the whole ones."""

    row: int
    """Number in its dataset, from 1."""
    question: str
    reference: str
    choices: list[str] = Field(default_factory=list)
    full: str | None = None
    quantized: str
    full_ended: bool | None = None
    quantized_ended: bool
    """False when the reply was cut at ``max_new_tokens``."""
    scores_full: dict[str, float] | None = None
    scores_quantized: dict[str, float]


class TaskEvaluation(_Frozen):
    """The user's own task, generated greedily before and after quantization."""

    dataset: str | None
    """None: rows of the calibration that were not fitted on."""
    rows: int
    rows_skipped: dict[str, int] = Field(default_factory=dict)
    """Reason → rows that were passed over for it."""
    max_new_tokens: int
    scores: list[TaskScore]
    replies: list[TaskReply]

    def score(self, name: str) -> TaskScore | None:
        return next((score for score in self.scores if score.name == name), None)


class CalibrationQuality(_Frozen):
    """Is the calibration data good enough?"""

    verdict: Literal["good", "thin", "poor"]
    reasons: list[str] = Field(default_factory=list)
    """Plain sentences, each with its number and what to do; empty when the verdict is good."""
    split_half_mean: float | None = None
    split_half_worst: float | None = None
    split_half_worst_group: str | None = None
    unseen_share_mean: float | None = None
    unseen_share_worst: float | None = None
    unseen_share_worst_group: str | None = None
    idle_experts: int = 0
    """Routed experts that no held-out token was sent to, over all groups."""
    experts: int = 0


class Acceptance(_Frozen):
    """The limits that the user gave, and whether the checkpoint keeps them."""

    limits: dict[str, float]
    verdict: Literal["accepted", "rejected"]
    missed: list[str] = Field(default_factory=list)
    """One sentence per limit that is not kept, with both numbers."""


class FrontierPoint(_Frozen):
    """One configuration that ``scheme: "auto"`` tried on a few samples."""

    label: str
    """For people: ``W4A8 · 8 experts of rank 16 · 10 % at 8 bits``."""
    options: dict[str, Any]
    """What it lays over the spec."""
    bytes: int
    """Of all tensors of the checkpoint."""
    effective_bits: float
    kl: float
    chosen: bool = False


class AutoSearch(_Frozen):
    target: dict[str, float]
    points: list[FrontierPoint]
    rows: int
    """Calibration rows behind each point."""
    seconds: float


class MixedPrecision(_Frozen):
    """Which input groups keep more weight bits, and what decided it."""

    weight_bits: int
    """The most that a group keeps; with a budget others may keep fewer, GroupReport.weight_bits has each."""
    groups: list[str]
    """Full names of all groups that keep more than the scheme's bits."""
    share: float
    """Of the quantized weights."""
    decided_by: Literal["names", "share", "budget"]


class Size(_Frozen):
    bytes_before: int
    """Bytes of the tensors of the source checkpoint, all of them, quantized or not."""
    bytes_after: int
    effective_bits: float
    """Stored bits per quantized weight: integers + scales + adapters + routers + smoothing."""
    bytes_loaded: int | None = None
    """Memory that a loaded model takes: everything keeps its stored form."""
    bytes_unpacked: int | None = None
    """Of the largest layer, whose weights are unpacked while it runs."""
    base_bits: float
    """The same without adapters, routers and smoothing."""
    quantized_weights: int
    """Number of weights that were quantized."""
    effective_bits_bf16: float | None = None
    """With adapters in bfloat16, when they are stored in int8."""


class QualityReport(_Frozen):
    """The whole report; ``quality_report.json`` in a checkpoint."""

    format: int = 1
    model: str
    scheme: str
    method: str
    blocks: list[BlockReport]
    quality: ModelQuality
    baseline: ModelQuality | None = None
    """The same model and held-out rows, every group rounded to nearest at the same bits and nothing else."""
    size: Size
    calibration: CalibrationQuality | None = None
    images: ImageSensitivity | None = None
    """None for text-only models and when no held-out row has an image."""
    replies: list[Reply] = Field(default_factory=list)
    """Of a few held-out rows: their words, and those of both models."""
    evaluation: TaskEvaluation | None = None
    """None when it was not asked for, or could not be made; then a warning says why."""
    acceptance: Acceptance | None = None
    mixed_precision: MixedPrecision | None = None
    auto: AutoSearch | None = None
    rows_used: int
    rows_held_out: int
    rows_skipped: dict[str, int] = Field(default_factory=dict)
    """Reason → number of calibration rows that were skipped for it."""
    tokens_vision: int = 0
    tokens_text: int = 0
    """Calibration tokens (not held out) by modality."""
    tokens_audio: int = 0
    """Positions of the audio encoder, of the same rows; silence that fills a window counts."""
    warnings: list[str] = Field(default_factory=list)
    seconds: float = 0.0
    environment: dict[str, str] = Field(default_factory=dict)
    """Versions of python, torch, transformers, quant_experts; the device's name."""
