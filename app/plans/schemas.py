"""What clients see of a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.pushes.schemas import NewPush
from core.contract import patterns
from core.contract.spec import JobEvaluation, JobSpec
from quant_experts.planning.plan import Placement, Plan
from quant_experts.planning.shapes import Shapes
from quant_experts.spec.exports import ExportFormat

Digest = Annotated[str, StringConstraints(pattern=patterns.SHA256)]


class JobRequest(JobSpec):
    """A job, the plan that it is to keep to, and where its files are pushed."""

    plan: Digest | None = Field(
        default=None,
        description="`digest` of `POST /v1/jobs:plan`. The job runs exactly what was planned, at the commits that were "
        "planned, or is refused.",
    )
    push_to: Annotated[list[NewPush], Field(max_length=8)] = Field(
        default=[],
        examples=[[{"to": "hub:team/captions-w4a8"}]],
        description="Where the files go when the job has succeeded and was not rejected (scope `pushes:write`). A push "
        "that fails does not fail the job.",
    )


class RefusalView(BaseModel):
    code: str = Field(description="As a job would fail with it.", examples=["invalid_spec"])
    detail: str
    pointer: str = Field(description="JSON pointer into the body; empty for the whole of it.")


class WarningView(BaseModel):
    """What the job would do all the same, and its owner may not want."""

    code: str = Field(examples=["larger_than_model"])
    detail: str = Field(description="With what to do about it.")
    pointer: str = Field(description="JSON pointer into the body; empty for the whole of it.")


class ResolvedInputs(BaseModel):
    """What names that can move point to now; a job made of the plan keeps to it."""

    model_commit: str | None
    model_fingerprint: str | None = Field(description="Fingerprint of a local model, which has no commit.")
    dataset_commit: str | None
    dataset_sha256: str | None
    evaluation_commit: str | None = Field(default=None, description="Of the dataset that is evaluated on.")
    evaluation_sha256: str | None = None

    def stored(self) -> dict[str, Any]:
        """As plans keep it: those without an evaluation are as they were before there was one."""
        without = {name for name in ("evaluation_commit", "evaluation_sha256") if getattr(self, name) is None}
        return self.model_dump(exclude=without)


class GroupKind(BaseModel):
    """Linear layers that are quantized together; `*` stands for the number of the block."""

    name: str
    layers: list[str]
    width: int = Field(description="Input channels.")
    outs: list[int] = Field(description="Output channels of each layer.")
    blocks: int
    stack: str | None = Field(default=None, description="Where several stacks are walked.", examples=["vision"])
    behind: bool = Field(default=False, description="It lies behind the blocks of its stack.")


class SkippedKind(BaseModel):
    name: str
    layers: int
    weights: int
    reason: str


class BlockSize(BaseModel):
    block: int = Field(description="Number among all blocks that are walked.")
    stack: str | None = Field(default=None, description="Where several stacks are walked.", examples=["vision"])
    index: int | None = Field(default=None, description="Within its stack; null for what lies behind its blocks.")
    bytes_before: int
    bytes_after: int


class SizeView(BaseModel):
    """Bytes of all tensors. Exact, unless what is measured during the run decides how many bits some groups get."""

    exact: bool
    bytes_before: int
    bytes_after: int = Field(description="At most.")
    bytes_after_least: int
    effective_bits: float = Field(description="Stored bits per quantized weight, adapters included; at most.")
    effective_bits_least: float
    blocks: list[BlockSize]


class Duration(BaseModel):
    """Seconds without the download of a hub model."""

    least: float
    likely: float
    most: float
    basis: Literal["measured", "shipped"] = Field(
        description="What the times rest on: measured blocks of your finished jobs, or the service's own rates."
    )
    blocks_measured: int


class PlacementView(BaseModel):
    """The run on one kind of device."""

    device: Literal["cpu", "cuda"]
    peak_host_bytes: int
    peak_device_bytes: int
    peak_phase: str
    seconds: Duration

    @classmethod
    def of(cls, placement: Placement) -> PlacementView:
        seconds = placement.seconds
        return cls(
            device="cuda" if placement.device == "cuda" else "cpu",
            peak_host_bytes=placement.memory.host,
            peak_device_bytes=placement.memory.device,
            peak_phase=placement.memory.phase,
            seconds=Duration(
                least=round(seconds.least, 1),
                likely=round(seconds.likely, 1),
                most=round(seconds.most, 1),
                basis="measured" if seconds.blocks_measured else "shipped",
                blocks_measured=seconds.blocks_measured,
            ),
        )


class RowsView(BaseModel):
    rows: int | None = Field(description="Rows of the dataset; null where only the job will know.")
    rows_used: int
    tokens_per_row: float = Field(
        description="Counted in the first rows by the model's tokenizer, or judged by text lengths, or assumed."
    )
    tokens_off_by: float = Field(description="The factor by which that may be off, either way.")
    tokens_counted: bool = Field(default=False, description="By the model's tokenizer.")


class Estimate(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_type: str = Field(description="As config.json has it.")
    blocks: int
    dtype: str
    quantized_weights: int
    quantized: list[GroupKind]
    skipped: list[SkippedKind]
    size: SizeView
    rows: RowsView
    placements: list[PlacementView]
    disk_bytes: int = Field(description="On the worker, a hub model's files included.")
    download_bytes: int = Field(description="From the hub, unless the worker has the commit already.")

    @classmethod
    def of(cls, plan: Plan, *, from_hub: bool) -> Estimate:
        size = plan.size
        return cls(
            model_type=plan.shapes.model_type,
            blocks=len(plan.shapes.blocks),
            dtype=plan.shapes.dtype,
            quantized_weights=plan.shapes.weights,
            quantized=_kinds(plan.shapes),
            skipped=[
                SkippedKind(name=kind.name, layers=kind.layers, weights=kind.weights, reason=kind.reason)
                for kind in plan.shapes.skipped
            ],
            size=SizeView(
                exact=size.is_exact,
                bytes_before=size.bytes_before,
                bytes_after=size.bytes_after_most,
                bytes_after_least=size.bytes_after_least,
                effective_bits=size.bits_most,
                effective_bits_least=size.bits_least,
                blocks=_block_sizes(plan),
            ),
            rows=RowsView(
                rows=plan.rows.rows,
                rows_used=plan.rows.used(plan.recipe.samples),
                tokens_per_row=round(plan.rows.tokens, 1),
                tokens_off_by=round(plan.rows.spread, 3),
                tokens_counted=plan.rows.counted,
            ),
            placements=[PlacementView.of(placement) for placement in plan.placements.values()],
            disk_bytes=plan.disk,
            download_bytes=plan.shapes.bytes_before if from_hub else 0,
        )


def _block_sizes(plan: Plan) -> list[BlockSize]:
    with_stack = plan.shapes.has_several_stacks
    return [
        BlockSize(
            block=block.number,
            stack=block.stack if with_stack else None,
            index=block.index if with_stack else None,
            bytes_before=before,
            bytes_after=after,
        )
        for block, before, after in zip(
            plan.shapes.blocks, plan.size.blocks_before, plan.size.blocks_after, strict=True
        )
    ]


def _kinds(shapes: Shapes) -> list[GroupKind]:
    kinds: dict[tuple[str, int, tuple[int, ...]], GroupKind] = {}
    for block in shapes.blocks:
        for group in block.groups:
            name = re.sub(r"\.\d+\.", ".*.", group.name)
            kind = kinds.setdefault(
                (name, group.width, group.outs),
                GroupKind(
                    name=name,
                    layers=list(group.layers),
                    width=group.width,
                    outs=list(group.outs),
                    blocks=0,
                    stack=block.stack if shapes.has_several_stacks else None,
                    behind=block.index is None,
                ),
            )
            kind.blocks += 1
    return list(kinds.values())


class WorkerFit(BaseModel):
    """A kind of worker that is alive, and whether the job fits it. Null where the worker does not say what it has."""

    device: str
    workers: int
    memory_bytes: int | None
    device_memory_bytes: int | None
    fits: bool | None
    reason: str | None


class _Planned(BaseModel):
    object: Literal["plan"] = "plan"
    digest: Digest
    accepted: bool = Field(description="No reason is known to refuse the job.")
    refusals: list[RefusalView]
    warnings: list[WarningView] = Field(default=[], description="Warnings, which do not refuse the job.")
    model: dict[str, Any]
    calibration: dict[str, Any]
    scheme: str
    method: str
    exports: list[ExportFormat] | None = None
    evaluation: JobEvaluation | None = None
    resolved: ResolvedInputs
    created_at: datetime
    expires_at: datetime


class PlanView(_Planned):
    estimate: Estimate | None = Field(description="Null when the model cannot be read from here.")
    workers: list[WorkerFit]


class KeptPlanView(_Planned):
    """A plan that a job can still be made of."""

    options: dict[str, Any]
    target: dict[str, Any] | None


def errors_of(refusals: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ``errors`` of a problem."""
    return [{"pointer": refusal["pointer"], "detail": refusal["detail"]} for refusal in refusals]
