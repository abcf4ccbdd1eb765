"""``qe plan``: what a quantization would take, told from config.json and safetensors headers."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from planning.blocks import Block
from planning.errors import HubUnavailable, Unreadable
from planning.headers import ModelHeaders
from planning.hub import read_hub
from planning.local import read_local
from planning.plan import Plan, make_plan
from planning.recipe import Recipe
from planning.rows import Rows, parsed_lines, sampled_rows, unknown_rows
from planning.shapes import Shapes
from quant_experts.commands.spec_options import spec_of, spec_options
from quant_experts.errors import InvalidModel, QuantExpertsError

SAMPLED_ROWS = 64
REFUSED = 1
"""Exit code when the run would be refused."""


class Unavailable(QuantExpertsError):
    """The hub did not answer."""

    code = "model_unavailable"


@click.command("plan", short_help="Say what a quantization would take; run nothing.")
@click.option(
    "--model", required=True, metavar="DIR_OR_ID", help="Model directory, or a Hugging Face Hub id owner/name."
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE", help="JSONL rows, for a better estimate."
)
@spec_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(*, model: str, revision: str | None, calibration: Path | None, as_json: bool, **options: Any) -> int:
    """Say what quantizing MODEL would take: bytes (exact), memory, disk, minutes, and what would refuse it.

    Reads config.json and the first bytes of every safetensors file, also of a hub model; torch is not loaded.
    Exit code 1 when the run would be refused.
    """
    spec, _ = spec_of(**options)
    headers, from_hub = _headers(model, revision)
    cores = len(os.sched_getaffinity(0))
    try:
        plan = make_plan(
            headers, Recipe.of(**spec.model_dump()), _rows(calibration, headers), from_hub=from_hub, cores=cores
        )
    except Unreadable as error:
        raise InvalidModel(str(error)) from error
    if as_json:
        click.echo(json.dumps(described(plan, headers), indent=2))
    else:
        for line in _sentences(plan, headers):
            click.echo(line)
    return REFUSED if plan.refusals else 0


def _headers(model: str, revision: str | None) -> tuple[ModelHeaders, bool]:
    try:
        if Path(model).is_dir():
            return read_local(Path(model)), False
        return read_hub(model, revision=revision, token=os.environ.get("HF_TOKEN")), True
    except Unreadable as error:
        raise InvalidModel(str(error)) from error
    except HubUnavailable as error:
        raise Unavailable(str(error)) from error


def _rows(calibration: Path | None, headers: ModelHeaders) -> Rows:
    vision = "vision_config" in headers.config
    if calibration is None:
        return unknown_rows(vision=vision)
    if not calibration.is_file():
        raise click.UsageError(f"--calibration: {calibration} is not a file")
    if calibration.suffix == ".parquet":
        return unknown_rows(vision=vision)
    with calibration.open("rb") as reader:
        sample = parsed_lines(itertools.islice(reader, SAMPLED_ROWS), SAMPLED_ROWS)
        rows = len(sample) + sum(1 for line in reader if line.strip())
    return sampled_rows(sample, rows=rows, config=headers.config, processor=headers.processor)


def described(plan: Plan, headers: ModelHeaders) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "model_type": plan.shapes.model_type,
        "commit": headers.commit,
        "blocks": len(plan.shapes.blocks),
        "quantized_weights": plan.shapes.weights,
        "quantized": [asdict(group) for block in plan.shapes.kinds for group in block.groups],
        "skipped": [asdict(kind) for kind in plan.shapes.skipped],
        "size": {**asdict(plan.size), "exact": plan.size.is_exact},
        "rows": asdict(plan.rows),
        "placements": {device: asdict(placement) for device, placement in plan.placements.items()},
        "disk": plan.disk,
        "refusals": [asdict(refusal) for refusal in plan.refusals],
    }


def _sentences(plan: Plan, headers: ModelHeaders) -> Iterator[str]:
    size, shapes = plan.size, plan.shapes
    commit = f" at {headers.commit[:12]}" if headers.commit else ""
    weights = f"{shapes.weights / 1e9:.3f} billion weights to quantize"
    yield f"{shapes.model_type}{commit}: {len(shapes.blocks)} blocks, {weights}"
    for block in shapes.kinds:
        if shapes.has_several_stacks:
            yield _stack(block, shapes)
        for group in block.groups:
            yield f"  {group.label}: {', '.join(group.layers)}  {group.width} → {' + '.join(map(str, group.outs))}"
    yield "stays as it is:"
    for kind in shapes.skipped:
        yield f"  {kind.name} ({kind.layers} layers, {kind.weights / 1e6:.1f} M weights): {kind.reason}"
    at_most = "" if size.is_exact else "at most "
    yield (
        f"bytes: {_size(size.bytes_before)} before, {at_most}{_size(size.bytes_after_most)} after "
        f"({at_most}{size.bits_most:.3f} bits per quantized weight)"
    )
    for device, placed in plan.placements.items():
        memory, seconds = placed.memory, placed.seconds
        on_device = f"{_size(memory.device)} on the GPU, " if memory.device else ""
        yield (
            f"on {device}: peak {on_device}{_size(memory.host)} of memory ({memory.phase}); "
            f"{_minutes(seconds.likely)}, between {_minutes(seconds.least)} and {_minutes(seconds.most)}"
        )
    yield f"disk: {_size(plan.disk)}"
    for refusal in plan.refusals:
        yield f"refused: {refusal.code}: {refusal.message}"


def _stack(block: Block, shapes: Shapes) -> str:
    if block.index is None:
        return f" behind the {block.stack} blocks:"
    blocks = [other for other in shapes.blocks if other.stack == block.stack and other.index is not None]
    return f" {block.stack}, {len(blocks)} blocks:"


def _size(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size / 1e3:.1f} kB"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
