"""What a user may ask for beyond a scheme: more bits for sensitive groups, a budget, a target, limits.

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

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("give at least one limit")
        return self
