"""Plans: refusals, sizes, times and workers that fit."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from quant_experts.client.views.base import View
from quant_experts.client.views.jobs import Calibration, ModelRef


class RefusalView(View):
    code: str
    detail: str
    pointer: str


class GroupKind(View):
    """Linear layers that are quantized together; ``*`` in the name stands for the number of the block. ``stack``: where
    several are walked; ``behind``: it lies behind the blocks of its stack."""

    name: str
    layers: list[str]
    width: int
    outs: list[int]
    blocks: int
    stack: str | None = None
    behind: bool = False


class SkippedKind(View):
    name: str
    layers: int
    weights: int
    reason: str


class BlockSize(View):
    block: int
    stack: str | None = None
    index: int | None = None
    bytes_before: int
    bytes_after: int


class WarningView(View):
    """What a job would do all the same, and its owner may not want."""

    code: str
    detail: str
    pointer: str


class SizeView(View):
    """``bytes_after`` and ``effective_bits``: at most, unless ``exact``."""

    exact: bool
    bytes_before: int
    bytes_after: int
    effective_bits: float
    blocks: list[BlockSize]


class Duration(View):
    """Seconds. ``basis``: ``measured`` on your workers, or ``shipped``."""

    least: float
    likely: float
    most: float
    basis: str
    blocks_measured: int


class PlacementView(View):
    """The run on one kind of device."""

    device: str
    peak_host_bytes: int
    peak_device_bytes: int
    peak_phase: str
    seconds: Duration


class RowsView(View):
    """Rows as a plan judged them. ``tokens_off_by``: a factor, either way; ``tokens_counted``: by the tokenizer."""

    rows: int | None
    rows_used: int
    tokens_per_row: float
    tokens_off_by: float
    tokens_counted: bool = False


class Estimate(View):
    model_type: str = ""
    blocks: int
    quantized_weights: int
    quantized: list[GroupKind]
    skipped: list[SkippedKind]
    size: SizeView
    rows: RowsView
    placements: list[PlacementView]
    disk_bytes: int
    download_bytes: int


class ResolvedInputs(View):
    """What names that can move point to now; a job made of the plan keeps to it."""

    model_commit: str | None
    model_fingerprint: str | None
    dataset_commit: str | None
    dataset_sha256: str | None
    evaluation_commit: str | None = None
    evaluation_sha256: str | None = None


class WorkerFit(View):
    """A kind of worker that is alive. ``fits``: None where it does not say what it has."""

    device: str
    workers: int
    memory_bytes: int | None
    device_memory_bytes: int | None
    fits: bool | None
    reason: str | None


class PlanView(View):
    digest: str
    accepted: bool
    """Nothing is known that would refuse the job."""
    refusals: list[RefusalView]
    warnings: list[WarningView] = Field(default_factory=list)
    model: ModelRef
    calibration: Calibration
    scheme: str
    method: str
    exports: list[str] | None = None
    evaluation: dict[str, Any] | None = None
    resolved: ResolvedInputs
    estimate: Estimate | None
    """None when the service cannot read the model."""
    workers: list[WorkerFit]
    created_at: datetime
    expires_at: datetime


class KeptPlanView(View):
    """A plan that was made before, and that a job can still be made of."""

    digest: str
    accepted: bool
    refusals: list[RefusalView]
    warnings: list[WarningView] = Field(default_factory=list)
    model: ModelRef
    calibration: Calibration
    scheme: str
    method: str
    options: dict[str, Any]
    target: dict[str, Any] | None
    exports: list[str] | None = None
    evaluation: dict[str, Any] | None = None
    resolved: ResolvedInputs
    created_at: datetime
    expires_at: datetime
