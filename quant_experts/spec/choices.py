"""What a user may ask for beyond a scheme: more bits for sensitive groups, a budget, a target, an evaluation, limits.

The library's spec, the body of a job and its OpenAPI schema use these models; their texts are the API's documentation.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Accepts ``60.0`` as the whole number 60, because JSON knows no integers. It stands behind the bounds of a strict
``int``: before them it would hide them from the schema."""


class _Choice(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sensitive(_Choice):
    """The input groups that keep more weight bits: the most sensitive share of all weights, or groups by name."""

    share: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    groups: (
        Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=4096)] | None
    ) = Field(default=None, description="Full names, or their ends as in `layers.0.mlp.down`.")
    weight_bits: Literal[6, 8] = 8

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.share is None) == (self.groups is None):
            raise ValueError("give either share or groups")
        return self


class Budget(_Choice):
    """Stored bits per quantized weight, adapters included, that the most sensitive groups may fill up."""

    bits_per_weight: Annotated[float, Field(strict=True, ge=2, le=16)]


class Target(_Choice):
    """What scheme `auto` searches for: the best model within a size, or the smallest within a KL."""

    max_bytes: Annotated[int, Field(strict=True, gt=0), WHOLE] | None = Field(
        default=None, description="Of all tensors of the checkpoint."
    )
    max_kl: Annotated[float, Field(strict=True, gt=0)] | None = Field(
        default=None, description="Mean KL to the full-precision model on held-out rows, nats per token."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.max_bytes is None) == (self.max_kl is None):
            raise ValueError("give either max_bytes or max_kl")
        return self


MOST_EVALUATION_ROWS, MOST_NEW_TOKENS = 512, 1024


class Evaluation(_Choice):
    """The user's own task: replies generated greedily before and after quantization, and scored against the rows' own.

    The last message of a row is the expected reply, and what comes before it is the prompt.
    """

    dataset: str | None = Field(
        default=None,
        description="Rows with the expected replies; left out, rows of the calibration that are not fitted on.",
    )
    split: str = "train"
    rows: Annotated[int, Field(strict=True, ge=1, le=MOST_EVALUATION_ROWS), WHOLE] = Field(
        default=32, description="At most so many, drawn by the seed."
    )
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=MOST_NEW_TOKENS), WHOLE] = Field(
        default=64, description="A reply that is longer is cut there."
    )
    original: bool = Field(
        default=True,
        description="Generate with the original too, which needs memory for all of it. Without it there is no change "
        "to tell.",
    )


Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class AcceptIf(_Choice):
    """Limits that a finished checkpoint is held against; they set the job's `verdict`, and the artifacts stay."""

    max_kl: Annotated[float, Field(strict=True, gt=0)] | None = None
    min_top1_agreement: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    max_perplexity_increase: Annotated[float, Field(strict=True, ge=0)] | None = Field(
        default=None, description="Share: 0.02 allows two percent over the full-precision model."
    )
    min_image_sensitivity: Annotated[float, Field(strict=True, ge=0)] | None = Field(
        default=None, description="Reaction to another image, relative to the full-precision model's."
    )

    min_exact_match: Share | None = Field(default=None, description="Share of the rows of `evaluation`.")
    max_exact_match_drop: Share | None = Field(
        default=None, description="Share of the rows: 0.02 allows two points less than the original has."
    )
    min_edit_similarity: Share | None = Field(
        default=None, description="Mean over the rows of 1 minus the normalised edit distance."
    )
    max_edit_similarity_drop: Share | None = None
    min_multiple_choice: Share | None = Field(default=None, description="Share of the rows with choices.")
    max_multiple_choice_drop: Share | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("give at least one limit")
        return self

    def refusal(self, evaluation: Evaluation | None) -> str | None:
        """Why a limit can never be kept with this ``evaluation``; None where each can."""
        for name in self.model_dump(exclude_none=True):
            score, is_drop = score_of(name)
            if score is None:
                continue
            if evaluation is None:
                return f"{name} is of a score of evaluation, which is left out: give one, or leave out the limit"
            if is_drop and not evaluation.original:
                return f"{name} compares with the original, and evaluation says original false: leave out one of them"
        return None


SCORES = ("exact_match", "edit_similarity", "multiple_choice")
LIMITS_OF_SCORES = tuple(limit for score in SCORES for limit in (f"min_{score}", f"max_{score}_drop"))


def score_of(limit: str) -> tuple[str | None, bool]:
    """The score that a limit is of, None for other limits; and whether it limits the drop."""
    name = limit.removeprefix("min_").removeprefix("max_").removesuffix("_drop")
    return (name if name in SCORES else None), limit.endswith("_drop")
