"""What a client asks for: the body of ``POST /v1/jobs``, stored with the job and read by the worker.

The names of ``options`` are those of ``qe quantize``. The tables of methods and slots repeat what the library
registers, because the API must not import it; ``tests/test_contract.py`` holds the two together.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

SCHEME_PATTERN = re.compile(r"W([2-8])A([4-8]|16)")
NAMED_SCHEMES = ("W4A6", "W4A8", "W3A16", "W4A16")
SMOOTHINGS = ("none", "outlier", "smoothquant", "search")
ROUNDINGS = ("rtn", "gptq")
RECONSTRUCTIONS = ("none", "svd", "lqer", "aser", "qe")
METHODS: dict[str, tuple[str, str, str]] = {
    "rtn": ("none", "rtn", "none"),
    "smoothquant": ("smoothquant", "rtn", "none"),
    "gptq": ("none", "gptq", "none"),
    "svd": ("none", "rtn", "svd"),
    "lqer": ("none", "rtn", "lqer"),
    "aser": ("none", "rtn", "aser"),
    "qe": ("search", "rtn", "qe"),
    "qe-gptq": ("search", "gptq", "qe"),
    "qe-paper": ("outlier", "rtn", "qe"),
}
"""Preset → (smoothing, rounding, reconstruction)."""

ModelId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", max_length=200)
]
DatasetRef = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$", min_length=1, max_length=200
    ),
]
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
LABEL_KEY = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRef(_Strict):
    """A hub id, or ``local/<directory>`` below the service's configured model root."""

    id: ModelId = Field(examples=["Qwen/Qwen2-VL-2B-Instruct", "local/my-model"])
    revision: Revision | None = Field(
        default=None, description="Branch, tag or commit; resolved to a commit when the job starts."
    )


class Calibration(_Strict):
    """The rows that the method observes. ``dataset`` is an uploaded ``ds_…`` or a hub dataset id."""

    dataset: DatasetRef = Field(examples=["ds_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    split: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "train"


class Options(_Strict):
    """Parameters of the method; every one has the method's default."""

    group_size: Literal[32, 64, 128, "channel"] | None = None
    shared_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    routed_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    experts: Annotated[int, Field(ge=1, le=64)] | None = None
    important_channels: Annotated[int, Field(ge=1, le=1024)] | None = None
    samples: Annotated[int, Field(ge=1, le=100_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    refine: Literal["none", "routed", "all"] | None = None
    smoothing: Literal["none", "outlier", "smoothquant", "search"] | None = None
    rounding: Literal["rtn", "gptq"] | None = None
    reconstruction: Literal["none", "svd", "lqer", "aser", "qe"] | None = None


class JobSpec(_Strict):
    """One quantization: which model, on which data, to which scheme, how."""

    model: ModelRef
    calibration: Calibration
    scheme: str = Field(examples=list(NAMED_SCHEMES))
    method: str = Field(default="qe", examples=list(METHODS))
    options: Options = Options()
    name: Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None
    labels: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$")]],
        Field(max_length=32),
    ] = Field(default_factory=dict)
    timeout_s: Annotated[int, Field(ge=60, le=7 * 24 * 3600)] = 24 * 3600

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if SCHEME_PATTERN.fullmatch(value) is None:
            raise ValueError(
                f"unknown scheme {value!r}: write W<2..8>A<4..8 or 16>, for example {', '.join(NAMED_SCHEMES)}"
            )
        return value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"unknown method {value!r}: choose one of {', '.join(METHODS)}")
        return value

    @field_validator("labels")
    @classmethod
    def _label_keys(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            if LABEL_KEY.fullmatch(key) is None:
                raise ValueError(
                    f"label {key!r}: use lower-case letters, digits, '.', '_', '/', '-'; at most 63 characters"
                )
        return value
