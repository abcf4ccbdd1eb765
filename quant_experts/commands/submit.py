"""``qe submit``: the job of ``qe quantize`` on a service."""

from __future__ import annotations

from typing import Any

import click

from quant_experts.client import Client, Job
from quant_experts.client.job import Names
from quant_experts.commands.models import check_is_of_a_service
from quant_experts.commands.options.evaluation import OPTIONS as EVALUATION
from quant_experts.commands.options.evaluation import evaluation_fields, evaluation_options
from quant_experts.commands.options.exports import export_option
from quant_experts.commands.options.job import (
    CALIBRATION,
    job_options,
    labels_of,
    report_submitted,
    rows_of,
    task_before_upload,
    uploaded_task,
)
from quant_experts.commands.options.spec import LIMITS, body_of, is_given, names_of_spec_options, spec_options
from quant_experts.commands.service_client import connected, json_option, url_option
from quant_experts.spec.exports import EXPORT_FORMATS


@click.command("submit", short_help="Queue a quantization on a service.")
@click.option("--model", metavar="ID", help="Hub id owner/name, or local/NAME below its model root.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@click.option("--calibration", metavar="FILE|ID", help=CALIBRATION)
@click.option("--split", metavar="NAME", help="Split of a hub dataset.  [default: train]")
@click.option(
    "--plan",
    "digest",
    metavar="DIGEST",
    help="Run exactly what qe plan printed, instead of --model, --calibration and the options of the method.",
)
@spec_options
@export_option
@evaluation_options("FILE|ID")
@click.option(
    "--push-to",
    "destinations",
    multiple=True,
    metavar="DEST",
    help="Push the files of the finished job there: hub:owner/name (private) or s3://bucket/prefix; repeatable.",
)
@click.option("--push-export", type=click.Choice(EXPORT_FORMATS), help="Push this export.  [default: the checkpoint]")
@job_options
@json_option("The job as one JSON object on stdout; with --watch, then its events.")
@url_option
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    digest: str | None,
    model: str | None,
    revision: str | None,
    calibration: str | None,
    split: str | None,
    exports: tuple[str, ...],
    destinations: tuple[str, ...],
    push_export: str | None,
    name: str | None,
    alias: str | None,
    labels: tuple[str, ...],
    timeout_s: int | None,
    max_wait_s: int | None,
    priority: int | None,
    device: str | None,
    idempotency_key: str | None,
    and_watch: bool,
    as_json: bool,
    url: str | None,
    **options: Any,
) -> int:
    """Queue the quantization of MODEL on a service and print the job's id."""
    task = evaluation_fields(options)
    body = body_of(**options)
    names: Names = {"name": name, "alias": alias, "labels": labels_of(labels), "timeout_s": timeout_s}
    if push_export is not None and not destinations:
        raise click.UsageError("--push-export: say where with --push-to")
    export = {} if push_export is None else {"export": push_export}
    names["push_to"] = [{"to": destination, **export} for destination in destinations] or None
    names |= {"max_wait_s": max_wait_s, "priority": priority, "device": device}
    if digest is not None:
        _check_nothing_else_decides(context)
    elif model is None or calibration is None:
        raise click.UsageError(f"--{'model' if model is None else 'calibration'}: needed, unless --plan is given")
    if model is not None:
        check_is_of_a_service(model)
    with connected(url) as client:
        if digest is not None:
            names["accept_if"] = body.get("accept_if")
            job = client.jobs.create_planned(digest, idempotency_key=idempotency_key, **names)
        else:
            job = _created(
                client,
                calibration or "",
                idempotency_key,
                model=model,
                revision=revision,
                split=split,
                exports=exports or None,
                task=task,
                **names,
                **body,
            )
        return report_submitted(client, job, as_json=as_json, and_watch=and_watch)


def _created(
    client: Client, calibration: str, idempotency_key: str | None, *, task: dict[str, Any] | None, **fields: Any
) -> Job:
    def ask(rows: str) -> Job:
        return client.jobs.create(calibration=rows, evaluation=task_before_upload(task), **fields)

    rows = rows_of(client, calibration, ask=ask)
    evaluation = uploaded_task(client, task)
    return client.jobs.create(calibration=rows, evaluation=evaluation, idempotency_key=idempotency_key, **fields)


def _check_nothing_else_decides(context: click.Context) -> None:
    """Raises UsageError for the first option that the plan determines."""
    deciding = {"model", "revision", "calibration", "split", "exports", *EVALUATION, *names_of_spec_options()}
    deciding -= set(LIMITS.values())
    options = (option for option in context.command.params if option.name in deciding)
    conflict = next((option for option in options if option.name and is_given(context, option.name)), None)
    if conflict is not None:
        raise click.UsageError(f"--plan says what {conflict.opts[0]} would: leave one of them out")
