"""``qe fork``: the job of a service again, with changes."""

from __future__ import annotations

from typing import Any

import click

from quant_experts.client import Job
from quant_experts.commands.options.evaluation import evaluation_changes, evaluation_options
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
from quant_experts.commands.options.spec import changes_of, is_given, spec_options
from quant_experts.commands.service_client import connected, json_option, url_option


@click.command("fork", short_help="Queue a job again with changes; what fits is taken over.")
@click.argument("job_id", metavar="JOB")
@click.option("--calibration", metavar="FILE|ID", help=f"Other rows: {CALIBRATION}")
@spec_options
@click.option(
    "--unset",
    multiple=True,
    metavar="FIELD",
    help="Take away what JOB said, as options.experts or accept_if; repeatable.",
)
@export_option
@evaluation_options("FILE|ID")
@job_options
@json_option("The new job as one JSON object on stdout; with --watch, then its events.")
@url_option
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    job_id: str,
    calibration: str | None,
    unset: tuple[str, ...],
    exports: tuple[str, ...],
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
    """Queue JOB again, with the changes that the options say; everything else stays as JOB has it; the defaults
    below do not matter. Print the new job's id.

    Calibration is taken over when model and rows are the same, finished blocks when all that is computed is the same.
    """
    task = evaluation_changes(options)
    changes: dict[str, Any] = changes_of(
        **{option: value for option, value in options.items() if is_given(context, option)}
    )
    fields: dict[str, Any] = {"name": name, "alias": alias, "timeout_s": timeout_s, "labels": labels_of(labels) or None}
    fields["exports"] = exports or None
    fields |= {"max_wait_s": max_wait_s, "priority": priority, "device": device}
    changes.update({field: value for field, value in fields.items() if value is not None})
    if task is not None:
        changes["evaluation"] = task
    for path in unset:
        _take_away(changes, path)
    with connected(url) as client:

        def ask(rows: str) -> Job:
            before = {"evaluation": task_before_upload(task)} if task else {}
            return client.jobs.fork(job_id, **{**changes, "calibration": {"dataset": rows}, **before})

        if calibration is not None:
            changes["calibration"] = {"dataset": rows_of(client, calibration, ask=ask)}
        if task is not None:
            changes["evaluation"] = uploaded_task(client, changes["evaluation"])
        job = client.jobs.fork(job_id, idempotency_key=idempotency_key, **changes)
        return report_submitted(client, job, as_json=as_json, and_watch=and_watch)


def _take_away(changes: dict[str, Any], path: str) -> None:
    """Raises UsageError for a field that is given as well."""
    *above, last = path.split(".")
    within = changes
    for name in above:
        within = within.setdefault(name, {})
    if not isinstance(within, dict) or last in within:
        raise click.UsageError(f"--unset {path}: another option gives it")
    within[last] = None
