"""The one configuration of a quantization run: scheme, slots, ranks, seed.

A ``QuantizationSpec`` is frozen, validated when made, and survives JSON unchanged, so that the same object is the
command line's arguments, the service's job options, the checkpoint's recipe and the key of a resumed run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from quant_experts.spec.choices import AcceptIf, Budget, Sensitive, Target
from quant_experts.spec.methods import (
    DEFAULT_METHOD,
    METHOD_VERSION,
    PRESETS,
    choices_of,
    group_size_of,
    group_sizes_of,
    search_rotates,
)
from quant_experts.spec.ranks import Ranks, in_mixture, ranks_of
from quant_experts.spec.schemes import Scheme, parse_scheme

__all__ = ["AUTO", "METHOD_VERSION", "PRESETS", "AcceptIf", "Budget", "QuantizationSpec", "Sensitive", "Target"]

AUTO = "auto"
"""The scheme that stands for a search."""


class QuantizationSpec(BaseModel):
    """What to do to a model. People use ``preset``: a bare constructor has the defaults of records without a version.

    Field names are those of the command line and of a job's ``options``.

    ``method_version``: which rules hold where no option chooses. Version 1 is that of specs recorded without the
    field. Version 2: ``group_size`` ``"auto"`` tries 128, 64 and 32; no more columns are exempt than ``shared_rank``;
    scales of a float32 model are stored in bfloat16, which they were rounded to before. Version 3: ranks and number of
    experts are ``"auto"``, and experts are stored in int8. Version 4: ``balanced`` and ``best`` rotate in the place of
    searching a scale, and smoothing ``"search"`` tries the rotation too.
    ``group_size``: input channels that share one weight scale; ``"channel"`` means one scale per output row, ``"auto"``
    the largest of 128, 64 and 32 that divides the width (version 1: 128), and ``"channel"`` where none does. A number
    must divide every width.
    ``weight_grid``: ``"max"`` puts each group's largest weight on the largest code; ``"searched"`` uses the code
    -2^(b-1) too and searches for the scale that leaves the smallest error on the calibration tokens.
    ``important_channels``: k, the channels counted as important per token.
    ``shared_rank``, ``routed_rank``: ranks of the shared expert and of each routed expert; larger than the layer
    allows, they are clamped and the report says so. ``shared_rank`` 0: no shared expert, and no column is exempt.
    ``experts``: routed experts; 0 leaves the shared one alone. All three ``"auto"``: as much as fits into 0.8 bits per
    weight together with scales and smoothing (quant_experts/spec/ranks.py).
    ``reservoir``: tokens kept per input group for clustering, expert assignment and the router.
    ``damping``: share of the mean diagonal added to a second moment before its Cholesky factorisation.
    ``adapter_dtype``: how experts and routers are stored; ``int8`` has one scale per row.
    ``vision``: ``"quantize"`` does the vision tower's blocks and its merger or projector too, which costs the
    most accuracy.
    ``scheme``: ``"auto"`` asks for a search and needs ``target``; the search replaces both before anything is fitted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method_version: Literal[1, 2, 3, 4] = 1

    scheme: str = "W4A6"
    method: str = "qe"

    smoothing: str = "search"
    smoothquant_alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    rounding: str = "rtn"
    reconstruction: str = "qe"

    group_size: Literal["auto", 32, 64, 128, "channel"] = "auto"
    shared_rank: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = 32
    routed_rank: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = 32
    experts: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = 8
    important_channels: Annotated[int, Field(ge=1, le=1024)] = 32

    weight_grid: Literal["max", "searched"] = "max"
    exempt: bool = True
    clustering: Literal["npmi", "random"] = "npmi"
    router: Literal["ridge", "norm", "random"] = "ridge"
    lloyd_rounds: Annotated[int, Field(ge=0, le=20)] = 3
    refine: Literal["none", "routed", "all"] = "none"
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    reservoir: Annotated[int, Field(ge=64, le=131072)] = 8192
    adapter_dtype: Literal["bf16", "int8"] = "bf16"

    vision: Literal["keep", "quantize"] = "keep"

    sensitive: Sensitive | None = None
    budget: Budget | None = None
    target: Target | None = None

    samples: Annotated[int, Field(ge=1, le=100_000)] = 128
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("scheme")
    @classmethod
    def _canonical_scheme(cls, value: str) -> str:
        return AUTO if value == AUTO else parse_scheme(value).name

    @model_validator(mode="after")
    def _mixed_precision_is_asked_for_in_one_way(self) -> Self:
        if (self.scheme == AUTO) != (self.target is not None):
            raise ValueError('scheme "auto" and target belong together: give both or neither')
        if self.sensitive is not None and self.budget is not None:
            raise ValueError("sensitive and budget both choose the groups that keep more bits: give one of them")
        if self.target is not None and (self.sensitive is not None or self.budget is not None):
            raise ValueError('scheme "auto" chooses the sensitive groups itself: leave out sensitive and budget')
        return self

    @model_validator(mode="after")
    def _a_reconstruction_has_something_to_fit(self) -> Self:
        if self.reconstruction == "none":
            return self
        experts = self.experts if self.reconstruction == "qe" else 0
        if experts == 0 and self.shared_rank == 0:
            raise ValueError(
                f'reconstruction "{self.reconstruction}" is left without any expert: raise shared_rank'
                + (" or experts" if self.reconstruction == "qe" else "")
                + ', or choose reconstruction "none"'
            )
        if self.reconstruction == "qe" and experts == 0 and self.refine != "none":
            raise ValueError("refine trains routed experts, and experts is 0: give at least 1, or leave refine out")
        return self

    @property
    def bits(self) -> Scheme:
        """Raises ValueError for ``"auto"``, which has none before its search."""
        return parse_scheme(self.scheme)

    def with_weight_bits(self, weight_bits: int) -> QuantizationSpec:
        """The same spec with another width of weights."""
        return self.model_copy(update={"scheme": f"W{weight_bits}A{self.bits.activation_bits}"})

    def for_group(self, *, of_mixture: bool) -> QuantizationSpec:
        """The spec of an input group; ``of_mixture``: it belongs to one expert of a mixture."""
        return self.model_copy(update=in_mixture(self)) if of_mixture else self

    @property
    def search_rotates(self) -> bool:
        """Smoothing ``"search"`` tries the rotation too."""
        return search_rotates(self.method_version)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """The sizes that ``"auto"`` tries, largest first."""
        return group_sizes_of(self.method_version)

    def group_size_for(self, width: int) -> int:
        """Input channels that share a weight scale in a group of this input width; a number has been seen to divide
        it."""
        return group_size_of(self.group_size, width, self.method_version)

    def ranks_for(self, *, rows: int, width: int, layers: int) -> Ranks:
        """Of the experts of an input group with ``rows`` outputs of all its ``layers``; none without a
        reconstruction, and no routed ones without ``qe``."""
        return ranks_of(self, rows=rows, width=width, layers=layers)

    @classmethod
    def preset(
        cls, method: str = DEFAULT_METHOD, *, method_version: int = METHOD_VERSION, **options: Any
    ) -> QuantizationSpec:
        """The spec of a named method, with ``options`` (any field) laid over it.

        Raises ValueError for an unknown method or version, an unknown option or a value out of bounds.
        """
        if method not in PRESETS:
            raise ValueError(f"method {method!r} is not known; choose one of {', '.join(PRESETS)}")
        return cls(method=method, method_version=method_version, **{**choices_of(method, method_version), **options})
