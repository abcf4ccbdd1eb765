"""One plan: everything that can be said of a job before it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant_experts.planning.cautions import Caution, cautions_of
from quant_experts.planning.disk import disk_of
from quant_experts.planning.errors import Refusal
from quant_experts.planning.headers import ModelHeaders
from quant_experts.planning.memory import Memory, memory_of
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.refusals import refusals_of, skipped_rows, unread_rows
from quant_experts.planning.rows import Rows
from quant_experts.planning.seconds import CORE, GPU, Calibration, Seconds, seconds_of
from quant_experts.planning.shapes import Shapes, shapes_of
from quant_experts.planning.sizes import Size, size_of


@dataclass(frozen=True)
class Placement:
    """What the run takes on one kind of device."""

    device: str
    memory: Memory
    seconds: Seconds


@dataclass(frozen=True)
class Plan:
    """``placements``: by device, ``cpu`` and ``cuda``. ``disk``: bytes on the worker."""

    shapes: Shapes
    recipe: Recipe
    rows: Rows
    size: Size
    placements: Mapping[str, Placement]
    disk: int
    refusals: tuple[Refusal, ...]
    cautions: tuple[Caution, ...]


def make_plan(
    headers: ModelHeaders,
    recipe: Recipe,
    rows: Rows,
    *,
    from_hub: bool,
    rows_bytes: int = 0,
    cores: int = 2,
    calibrations: Mapping[str, Calibration] | None = None,
) -> Plan:
    """``rows_bytes``: of the file of rows, where the worker has to fetch it; ``cores``: of the worker, for its CPU;
    ``calibrations``: by device. Raises Unreadable for a model that cannot be walked."""
    shapes = shapes_of(headers, vision=recipe.vision)
    size = size_of(shapes, recipe)
    calibrations_by_kind = calibrations or {}
    placements = {
        device: Placement(
            device,
            memory_of(shapes, recipe, rows, size, cuda=device == "cuda"),
            seconds_of(shapes, recipe, rows, rates=rates, cores=count, calibration=calibrations_by_kind.get(device)),
        )
        for device, rates, count in (("cpu", CORE, cores), ("cuda", GPU, 1))
    }
    disk = disk_of(shapes, recipe, rows, size, from_hub=from_hub, rows_bytes=rows_bytes)
    refusals = refusals_of(shapes, recipe, rows, size, headers)
    cautions = (*cautions_of(shapes, recipe, size), *skipped_rows(rows, shapes), *unread_rows(rows))
    return Plan(shapes, recipe, rows, size, placements, disk, refusals, cautions)


def digest_of(content: Mapping[str, Any]) -> str:
    """A digest of what a plan stands on: the body, the model's commit, the dataset's."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
