"""What a client asks for: the body of ``POST /v1/jobs``, stored with the job and read by the worker.

The names of ``options`` are those of ``qe quantize``. Slots, methods and choices come from ``quant_experts.spec``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from core.contract import patterns
from core.contract.alias import Alias
from quant_experts.spec.choices import WHOLE, AcceptIf, Budget, Evaluation, Sensitive, Target
from quant_experts.spec.exports import EXPORT_FORMATS, ExportFormat, export_refusal
from quant_experts.spec.methods import DEFAULT_METHOD, PRESETS, choices_of
from quant_experts.spec.slots import Reconstruction, Rounding, Smoothing

SCHEME_PATTERN = re.compile(r"W([2-8])A([4-8]|16)")
AUTO = "auto"
NAMED_SCHEMES = ("W4A6", "W4A8", "W3A16", "W4A16")
METHODS: dict[str, tuple[str, str, str]] = {
    name: (options["smoothing"], options["rounding"], options["reconstruction"]) for name, options in PRESETS.items()
}
"""Preset → (smoothing, rounding, reconstruction)."""
FIRST: dict[str, Any] = {
    "shared_rank": 32, "routed_rank": 32, "experts": 8, "important_channels": 32, "adapter_dtype": "bf16",
    "refine": "none", "smoothquant_alpha": 0.5, "vision": "keep", "samples": 128, "seed": 0, "weight_grid": "max",
}  # fmt: skip
"""The defaults of ``method_version`` 1. Those of smoothing, rounding and reconstruction depend on the method."""
UNKNOWN_HERE = ("auto", None)
"""Defaults that stand for no value that can be told without the model: of group size, ranks, experts, sensitive groups
and budget."""

ModelId = Annotated[str, StringConstraints(pattern=patterns.MODEL, max_length=200)]
DatasetRef = Annotated[str, StringConstraints(pattern=patterns.DATASET, min_length=1, max_length=200)]
Revision = Annotated[str, StringConstraints(pattern=patterns.REVISION)]
# Its own schema: generators of clients refuse an enum of numbers and words, and with it whole jobs.
GroupSize = Annotated[
    Literal[32, 64, 128, "channel"],
    WithJsonSchema({"anyOf": [{"type": "integer", "enum": [32, 64, 128]}, {"type": "string", "const": "channel"}]}),
]
LABEL_KEY = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelRef(_Strict):
    """A hub id, or ``local/<directory>`` below the service's configured model root."""

    id: ModelId = Field(examples=["Qwen/Qwen2-VL-2B-Instruct", "local/my-model"])
    revision: Revision | None = Field(
        default=None, description="Branch, tag or commit; resolved to a commit when the job starts."
    )


class Calibration(_Strict):
    """The rows that the method observes. ``dataset`` is an uploaded ``ds_…`` or a hub dataset id."""

    dataset: DatasetRef = Field(examples=["ds_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    split: Annotated[str, StringConstraints(pattern=patterns.SPLIT)] = "train"


class Options(_Strict):
    """Parameters of the method; every one has the method's default."""

    method_version: Literal[1, 2, 3, 4] | None = Field(
        default=None,
        description="The version of the method whose defaults the other options have; the newest when the job is made. "
        "1 repeats a job from before there were versions, 2 one with ranks of a fixed size, 3 one whose smoothing "
        "`search` tried no rotation.",
    )
    group_size: GroupSize | None = None
    shared_rank: Annotated[int, Field(strict=True, ge=0, le=1024), WHOLE] | None = None
    routed_rank: Annotated[int, Field(strict=True, ge=1, le=1024), WHOLE] | None = None
    experts: Annotated[int, Field(strict=True, ge=0, le=64), WHOLE] | None = None
    important_channels: Annotated[int, Field(strict=True, ge=1, le=1024), WHOLE] | None = None
    samples: Annotated[int, Field(strict=True, ge=1, le=100_000), WHOLE] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63), WHOLE] | None = None
    weight_grid: Literal["max", "searched"] | None = Field(
        default=None,
        description="`searched`, the default, looks for the weight scales that leave the smallest error on the "
        "calibration rows; `max` takes the largest weight of each group.",
    )
    refine: Literal["none", "routed", "all"] | None = None
    smoothing: Smoothing | None = None
    smoothquant_alpha: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    rounding: Rounding | None = None
    reconstruction: Reconstruction | None = None
    adapter_dtype: Literal["bf16", "int8"] | None = Field(
        default=None, description="How experts are stored; int8 has one scale per row."
    )
    vision: Literal["keep", "quantize"] | None = Field(
        default=None,
        description="The vision tower and its merger or projector; kept unless asked for, because quantizing them "
        "costs the most accuracy.",
    )
    sensitive: Sensitive | None = None
    budget: Budget | None = None


class JobEvaluation(Evaluation):
    """The user's own task: greedy replies before and after quantization, scored against the rows' own.

    The last message of a row is the expected reply, and what comes before it is the prompt. Exact match, edit
    similarity and, of rows with `choices` or lettered options, multiple choice: in the report, `summary.evaluation`,
    and as limits of `accept_if`. A job whose replies cannot be made succeeds all the same and says so in a warning.
    """

    dataset: DatasetRef | None = Field(
        default=None,
        examples=["ds_0198a1b2c3d47e5f8a9b0c1d2e3f4a5c"],
        description="An uploaded `ds_…` or a hub dataset id; left out, rows of the calibration dataset that are not "
        "fitted on.",
    )
    split: Annotated[str, StringConstraints(pattern=patterns.SPLIT)] = "train"


class JobSpec(_Strict):
    """One quantization: which model, on which data, to which scheme, how."""

    model: ModelRef
    calibration: Calibration
    scheme: str = Field(examples=list(NAMED_SCHEMES))
    method: str = Field(default=DEFAULT_METHOD, examples=list(METHODS))
    options: Options = Options()
    target: Target | None = Field(default=None, description='Goes with scheme "auto", and only with it.')
    evaluation: JobEvaluation | None = None
    accept_if: AcceptIf | None = None
    exports: Annotated[list[ExportFormat], Field(min_length=1, max_length=len(EXPORT_FORMATS))] | None = Field(
        default=None,
        examples=[["dequantized"]],
        description="Other formats that the finished checkpoint is also written in. Their files are artifacts below "
        "`exports/<format>/`, and `/hub` serves each as a revision of that name. An export that cannot be made does "
        "not fail the job: `summary.exports` says why.",
    )
    name: Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=patterns.LINE)] | None = None
    alias: Alias | None = Field(
        default=None,
        examples=["team/model-w4a6"],
        description="Under this name `/hub` serves the newest succeeded job that carries it and was not rejected.",
    )
    labels: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=120, pattern=patterns.LINE_OR_NOTHING)]],
        Field(max_length=32),
    ] = Field(default_factory=dict)
    timeout_s: Annotated[int, Field(strict=True, ge=60, le=7 * 24 * 3600), WHOLE] = Field(
        default=24 * 3600, description="Seconds that workers may hold it, all attempts together; waiting is not in it."
    )
    max_wait_s: Annotated[int, Field(strict=True, ge=60, le=7 * 24 * 3600), WHOLE] | None = Field(
        default=None,
        description="Seconds that it may wait for a worker, each time that it waits; after that it fails with "
        "`no_worker`. Without it a job waits until somebody cancels it.",
    )
    priority: Annotated[int, Field(strict=True, ge=-100, le=100), WHOLE] = Field(
        default=0,
        description="Your waiting jobs with the highest are taken first; no other tenant waits longer for it.",
    )
    device: Annotated[str, StringConstraints(min_length=1, max_length=60, pattern=patterns.LINE)] | None = Field(
        default=None,
        examples=["gpu", "H100"],
        description="Only workers with such a device take it: `cpu`, `gpu`, or a part of a GPU's name.",
    )

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value != AUTO and SCHEME_PATTERN.fullmatch(value) is None:
            raise ValueError(
                f"unknown scheme {value!r}: write W<2..8>A<4..8 or 16>, for example {', '.join(NAMED_SCHEMES)}, "
                f'or "{AUTO}" with a target'
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

    @field_validator("accept_if")
    @classmethod
    def _limits_can_be_kept(cls, value: AcceptIf | None, info: ValidationInfo) -> AcceptIf | None:
        if value is not None and "evaluation" in info.data:  # else it has an error of its own
            refusal = value.refusal(info.data["evaluation"])
            if refusal is not None:
                raise ValueError(refusal)
        return value

    @field_validator("exports")
    @classmethod
    def _exports_are_possible(cls, value: list[ExportFormat] | None, info: ValidationInfo) -> list[ExportFormat] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a format is named twice")
        method, options = info.data.get("method"), info.data.get("options")
        if value is not None and method is not None and options is not None:  # else they have an error of their own
            slots = {**PRESETS[method], **options.model_dump(exclude_none=True)}
            refusal = export_refusal(value, smoothing=slots["smoothing"], reconstruction=slots["reconstruction"])
            if refusal is not None:
                raise ValueError(refusal)
        return value

    @model_validator(mode="after")
    def _mixed_precision_is_asked_for_in_one_way(self) -> Self:
        if (self.scheme == AUTO) != (self.target is not None):
            raise ValueError('scheme "auto" and target belong together: give both or neither')
        if self.options.sensitive is not None and self.options.budget is not None:
            raise ValueError("options sensitive and budget both choose the groups that keep more bits: give one")
        if self.target is not None and (self.options.sensitive is not None or self.options.budget is not None):
            raise ValueError('scheme "auto" chooses the sensitive groups itself: leave out sensitive and budget')
        return self

    def options_in_full(self) -> dict[str, Any]:
        """Every option of a stored job with its value, also where it is left out; None where nothing says the default.

        A job without a version is older than the field.
        """
        options = {"method_version": 1} | self.options.model_dump(mode="json", exclude_none=True)
        values = {**FIRST, **choices_of(self.method, options["method_version"]), **options}
        return {name: None if values.get(name) in UNKNOWN_HERE else values[name] for name in Options.model_fields}
