"""A tiny model up to the point where sensitivity is measured: its blueprint, its plans and a few captured rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from quant_experts.calibration.capture import capture_inputs
from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.samples import choose, open_rows
from quant_experts.model.blueprint import load, open_blueprint
from quant_experts.model.groups import plan_groups
from quant_experts.model.manifest import Vision
from quant_experts.model.run_context import RunContext
from quant_experts.progress import OnEvent, ShouldStop, ignore, never
from quant_experts.sensitivity.measurements import SensitivityMeasurements
from quant_experts.walk.resume_files import claim_directory
from tests.models import VISION_FAMILIES, make_model
from tests.rows import image_row, text_row, write_rows

CPU = torch.device("cpu")


def measuring(
    directory: Path,
    family: str,
    *,
    rows: list[dict[str, Any]] | None = None,
    on_event: OnEvent = ignore,
    should_stop: ShouldStop = never,
    vision: Vision = "keep",
    **model: Any,
) -> SensitivityMeasurements:
    """By default seven rows, of which two are held out; of vision models every other one has an image."""
    if rows is None:
        seeing = family in VISION_FAMILIES
        rows = [image_row(i) if seeing and i % 2 else text_row(i) for i in range(7)]
    source = make_model(family, directory / "model", **model)
    blueprint = open_blueprint(source, device=CPU)
    file = open_rows(write_rows(directory / "rows.jsonl", rows))
    choice = choose(file, samples=len(rows), holdout=0.1, seed=0)
    work = directory / "work"
    claim_directory(work, {})
    for name, _ in blueprint.language_model.named_children():
        if name not in ("layers", "embed_tokens"):
            load(blueprint, f"{blueprint.manifest.language_model}.{name}")
    plans = plan_groups(blueprint.model, blueprint.manifest, vision=vision)
    context = RunContext(blueprint, plans, work, "run", on_event, should_stop)
    silent = replace(context, on_event=ignore, should_stop=never)
    collate = open_collator(source, blueprint.model.config)
    return SensitivityMeasurements(context, capture_inputs(silent, file, choice, collate, vision=vision))
