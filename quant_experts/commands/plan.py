"""``qe plan``: bytes, memory and time of a quantization, from config.json and safetensors headers, here or by a
service."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from quant_experts.commands.display.plan_text import (
    PlacementText,
    PlanText,
    QuantizedLayers,
    SkippedLayers,
    Tokens,
    refusal,
    sentences,
    stack_title,
    warning,
)
from quant_experts.commands.exit_codes import BAD_INPUT
from quant_experts.commands.models import ID, check_is_of_a_service
from quant_experts.commands.options.evaluation import OPTIONS as EVALUATION
from quant_experts.commands.options.evaluation import evaluation_fields, evaluation_of, evaluation_options
from quant_experts.commands.options.exports import check_exports, export_option
from quant_experts.commands.options.spec import body_of, spec_of, spec_options
from quant_experts.errors import InvalidModel, QuantExpertsError
from quant_experts.planning.blocks import Block
from quant_experts.planning.errors import HubUnavailable, Unreadable
from quant_experts.planning.headers import ModelHeaders
from quant_experts.planning.hub import read_hub, read_hub_text
from quant_experts.planning.local import read_local, read_local_text
from quant_experts.planning.plan import Placement, Plan, make_plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows, counted_text, parsed_parquet, sampled_rows, unknown_rows
from quant_experts.planning.shapes import Shapes
from quant_experts.planning.text_files import TextFiles
from quant_experts.spec.prefixes import LOCAL

SAMPLED_ROWS = 64


class Unavailable(QuantExpertsError):
    """The hub did not answer."""

    code = "model_unavailable"


@click.command("plan", short_help="Say what a quantization would take; run nothing.")
@click.option(
    "--model",
    required=True,
    metavar="DIR_OR_ID",
    help="Model directory, a Hugging Face Hub id owner/name, or local/NAME below a service's model root.",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@click.option(
    "--calibration",
    metavar="FILE|ID",
    help="JSONL or Parquet, for a better estimate. On a service needed, as for qe submit: a file is uploaded unless "
    "the service has it; or ds_…; or a hub dataset id.",
)
@click.option("--split", metavar="NAME", help="Split of a hub dataset, on a service.  [default: train]")
@spec_options
@export_option
@evaluation_options("FILE|ID")
@click.option(
    "--on-service/--here",
    "on_service",
    default=None,
    help="Where to plan.  [default: here for a directory; else the service that --url, QE_URL or the config file "
    "names; else here]",
)
@click.option("--url", metavar="URL", help="Plan on this service.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON; on a service as its API has it.")
def command(
    *,
    model: str,
    revision: str | None,
    calibration: str | None,
    split: str | None,
    exports: tuple[str, ...],
    on_service: bool | None,
    url: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Say what quantizing MODEL would take: bytes (exact), memory, disk, minutes, and what would refuse it.

    Reads config.json and the first bytes of every safetensors file, also of a hub model; torch is not loaded. A service
    also says which of its workers could run it and keeps the plan for a day: qe submit --plan DIGEST runs exactly that.
    Exit code 1 when the run would be refused.
    """
    asked = {name: options.pop(name) for name in EVALUATION}
    if on_the_service(model, url=url, answer=on_service):
        if calibration is None:
            raise click.UsageError("--calibration: a service plans a job with its rows: give a file, ds_… or a hub id")
        from quant_experts.commands.service_plan import plan_on_service

        is_accepted = plan_on_service(
            model=model,
            revision=revision,
            calibration=calibration,
            split=split,
            body={**body_of(**options), "exports": exports or None},
            task=evaluation_fields(asked),
            as_json=as_json,
            url=url,
        )
        return 0 if is_accepted else BAD_INPUT
    if split is not None:
        raise click.UsageError("--split names a split of a hub dataset; only a service makes plans with one")
    spec, accept_if = spec_of(**options)
    evaluation = evaluation_of(asked, accept_if)
    check_exports(exports, spec)
    headers, from_hub = _headers(model, revision)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    rows = _rows(Path(calibration) if calibration else None, model, headers)
    try:
        recipe = Recipe.of(**spec.model_dump(), exports=exports, evaluation=evaluation)
        plan = make_plan(headers, recipe, rows, from_hub=from_hub, cores=cores)
    except Unreadable as error:
        raise InvalidModel(str(error)) from error
    if as_json:
        click.echo(json.dumps(described(plan, headers), indent=2))
    else:
        for line in (
            *sentences(_told(plan, headers)),
            *(warning(each.message) for each in plan.cautions),
            *(refusal(each.code, each.message) for each in plan.refusals),
        ):
            click.echo(line)
    return BAD_INPUT if plan.refusals else 0


def on_the_service(model: str, *, url: str | None, answer: bool | None) -> bool:
    """Whether a service plans, or this machine. Raises UsageError where it is ambiguous."""
    directory, looks_like_id = Path(model).is_dir(), ID.fullmatch(model) is not None
    if answer is False and url is not None:
        raise click.UsageError("--here and --url: give one of them")
    if answer is False:
        return False
    if answer or url is not None:
        check_is_of_a_service(model, instead="plan it with --here, or ")
        _check_installed()
        return True
    if not _service_is_named():
        if model.startswith(LOCAL) and not directory:
            raise click.UsageError(f"--model {model} is below a service's model root: give --url or QE_URL")
        return False
    if directory and looks_like_id:
        raise click.UsageError(
            f"--model {model} is a directory here and may be a model of the service: give --here or --on-service"
        )
    if not directory:
        _check_installed()
    return not directory


def _service_is_named() -> bool:
    if os.environ.get("QE_URL"):
        return True
    if not _has_client():
        return False
    from quant_experts.client.configuration import names_a_service

    return names_a_service()


def _has_client() -> bool:
    return importlib.util.find_spec("httpx") is not None


def _check_installed() -> None:
    if not _has_client():
        raise click.UsageError("httpx is needed to ask a service: pip install 'quant-experts[client]' (or plan --here)")


def _headers(model: str, revision: str | None) -> tuple[ModelHeaders, bool]:
    try:
        if Path(model).is_dir():
            return read_local(Path(model)), False
        return read_hub(model, revision=revision, token=os.environ.get("HF_TOKEN")), True
    except Unreadable as error:
        raise InvalidModel(str(error)) from error
    except HubUnavailable as error:
        raise Unavailable(str(error)) from error


def _rows(calibration: Path | None, model: str, headers: ModelHeaders) -> Rows:
    if calibration is None:
        return unknown_rows(vision="vision_config" in headers.config)
    if not calibration.is_file():
        raise click.UsageError(f"--calibration: {calibration} is not a file")
    rows: int | None
    if calibration.suffix == ".parquet":
        sample, rows = parsed_parquet(calibration, SAMPLED_ROWS)
    else:
        sample, rows = counted_text(calibration, SAMPLED_ROWS)
    return sampled_rows(sample, rows=rows, files=_text_files(model, headers))


def _text_files(model: str, headers: ModelHeaders) -> TextFiles:
    """Text files of the model; without a tokenizer where it cannot be fetched, and then text is estimated by its
    length."""
    try:
        if headers.commit is None:
            return read_local_text(Path(model))
        return read_hub_text(model, revision=headers.commit, token=os.environ.get("HF_TOKEN"))
    except (Unreadable, HubUnavailable):
        return TextFiles(headers.config, headers.processor)


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
        "warnings": [asdict(caution) for caution in plan.cautions],
    }


def _told(plan: Plan, headers: ModelHeaders) -> PlanText:
    shapes = plan.shapes
    commit = f" at {headers.commit[:12]}" if headers.commit else ""
    return PlanText(
        model=f"{shapes.model_type}{commit}",
        blocks=len(shapes.blocks),
        weights=shapes.weights,
        quantized=[
            QuantizedLayers(_stack(block, shapes), group.label, group.layers, group.width, group.outs)
            for block in shapes.kinds
            for group in block.groups
        ],
        skipped=[SkippedLayers(kind.name, kind.layers, kind.weights, kind.reason) for kind in shapes.skipped],
        exact=plan.size.is_exact,
        before=plan.size.bytes_before,
        after=plan.size.bytes_after_most,
        bits=plan.size.bits_most,
        tokens=Tokens(plan.rows.tokens, plan.rows.counted, plan.rows.spread),
        placements=[_placed(each) for each in plan.placements.values()],
        disk=plan.disk,
    )


def _placed(placement: Placement) -> PlacementText:
    memory, seconds = placement.memory, placement.seconds
    return PlacementText(
        placement.device, memory.device, memory.host, memory.phase, seconds.least, seconds.likely, seconds.most
    )


def _stack(block: Block, shapes: Shapes) -> str | None:
    if not shapes.has_several_stacks:
        return None
    blocks = [other for other in shapes.blocks if other.stack == block.stack and other.index is not None]
    return stack_title(block.stack, None if block.index is None else len(blocks))
