"""The one configuration of a quantization run: scheme, slots, ranks, seed.

A :class:`QuantizationSpec` is frozen, validated when made, and survives JSON unchanged, so that the same object is the
command line's arguments, the service's job options, the checkpoint's recipe and the key of a resumed run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from quant_experts.schemes import Scheme, parse_scheme

PRESETS: dict[str, dict[str, Any]] = {
    "rtn": {"smoothing": "none", "rounding": "rtn", "reconstruction": "none"},
    "smoothquant": {"smoothing": "smoothquant", "rounding": "rtn", "reconstruction": "none"},
    "gptq": {"smoothing": "none", "rounding": "gptq", "reconstruction": "none"},
    "svd": {"smoothing": "none", "rounding": "rtn", "reconstruction": "svd"},
    "lqer": {"smoothing": "none", "rounding": "rtn", "reconstruction": "lqer"},
    "aser": {"smoothing": "none", "rounding": "rtn", "reconstruction": "aser"},
    "qe": {"smoothing": "search", "rounding": "rtn", "reconstruction": "qe"},
    "qe-gptq": {"smoothing": "search", "rounding": "gptq", "reconstruction": "qe"},
    "qe-paper": {
        "smoothing": "outlier",
        "rounding": "rtn",
        "reconstruction": "qe",
        "router": "norm",
        "lloyd_rounds": 0,
    },
}
"""Named methods: each is a choice for the three slots (method.md, section 6)."""


class QuantizationSpec(BaseModel):
    """What to do to a model. Field names are those of the command line and of a job's ``options``.

    ``group_size``: input channels that share one weight scale; ``"channel"`` means one scale per output row, ``"auto"``
    means 128, and ``"channel"`` for the layers whose width 128 does not divide. A number must divide every width.
    ``important_channels``: k, the channels counted as important per token.
    ``shared_rank``, ``routed_rank``: ranks of the shared expert and of each routed expert; larger than the layer
    allows, they are clamped and the report says so.
    ``reservoir``: tokens kept per input group for clustering, expert assignment and the router.
    ``damping``: share of the mean diagonal added to a second moment before its Cholesky factorisation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: str = "W4A6"
    method: str = "qe"

    smoothing: str = "search"
    smoothquant_alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    rounding: str = "rtn"
    reconstruction: str = "qe"

    group_size: Literal["auto", 32, 64, 128, "channel"] = "auto"
    shared_rank: Annotated[int, Field(ge=1, le=1024)] = 32
    routed_rank: Annotated[int, Field(ge=1, le=1024)] = 32
    experts: Annotated[int, Field(ge=1, le=64)] = 8
    important_channels: Annotated[int, Field(ge=1, le=1024)] = 32

    exempt: bool = True
    clustering: Literal["npmi", "random"] = "npmi"
    router: Literal["ridge", "norm", "random"] = "ridge"
    lloyd_rounds: Annotated[int, Field(ge=0, le=20)] = 3
    refine: Literal["none", "routed", "all"] = "none"
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    reservoir: Annotated[int, Field(ge=64, le=131072)] = 8192

    samples: Annotated[int, Field(ge=1, le=100_000)] = 128
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("scheme")
    @classmethod
    def _canonical_scheme(cls, value: str) -> str:
        return parse_scheme(value).name

    @property
    def bits(self) -> Scheme:
        return parse_scheme(self.scheme)

    @classmethod
    def preset(cls, method: str = "qe", **options: Any) -> QuantizationSpec:
        """The spec of a named method, with ``options`` (any field) laid over it.

        Raises ValueError for an unknown method, an unknown option or a value out of bounds.
        """
        if method not in PRESETS:
            raise ValueError(f"method {method!r} is not known; choose one of {', '.join(PRESETS)}")
        return cls(method=method, **{**PRESETS[method], **options})
