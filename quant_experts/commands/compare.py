"""``qe compare``: several ways to quantize one model on a service, in one table."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.live import Live

from quant_experts.client import Candidate, Client, Comparison
from quant_experts.commands.display.comparison_table import print_list, print_table, table_of
from quant_experts.commands.display.live_line import live_console
from quant_experts.commands.display.printable import printable
from quant_experts.commands.exit_codes import CANCELLED, FAILED, INTERRUPTED
from quant_experts.commands.models import check_is_of_a_service
from quant_experts.commands.options.evaluation import evaluation_fields, evaluation_options
from quant_experts.commands.options.job import (
    CALIBRATION,
    idempotency_option,
    label_option,
    labels_of,
    rows_of,
    task_before_upload,
    timeout_option,
    uploaded_task,
)
from quant_experts.commands.options.spec import body_of, refining_options
from quant_experts.commands.service_client import connected, json_option, print_json, save, url_option

LISTED = 20


@click.command("compare", short_help="Compare schemes and methods: one table, and what nothing beats.")
@click.argument("candidates", metavar="[CANDIDATE...|COMPARISON]", nargs=-1)
@click.option("--model", metavar="ID", help="Hub id owner/name, or local/NAME below the service's model root.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@click.option("--calibration", metavar="FILE|ID", help=CALIBRATION)
@click.option("--split", metavar="NAME", help="Split of a hub dataset.  [default: train]")
@refining_options
@evaluation_options("FILE|ID")
@click.option("--name", metavar="TEXT", help="What people call the comparison.")
@label_option
@timeout_option
@idempotency_option
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save the drawing as SVG."
)
@click.option("--no-wait", is_flag=True, help="Show it as it is now.")
@click.option("--cancel", is_flag=True, help="Cancel what has not ended of COMPARISON.")
@json_option("The comparison as one JSON object on stdout.")
@url_option
def command(
    *,
    candidates: tuple[str, ...],
    model: str | None,
    revision: str | None,
    calibration: str | None,
    split: str | None,
    name: str | None,
    labels: tuple[str, ...],
    timeout_s: int | None,
    idempotency_key: str | None,
    plot: Path | None,
    no_wait: bool,
    cancel: bool,
    as_json: bool,
    url: str | None,
    **options: Any,
) -> int:
    """Quantize one model in several ways on the same rows and show what came out, smallest and closest marked.

    A CANDIDATE is SCHEME, SCHEME/METHOD, or either with options of its own; LABEL: before it gives it a name:

    \b
    qe compare --model ID --calibration rows.jsonl W4A6 W4A6/gptq W8A8/rtn
    qe compare --model ID --calibration rows.jsonl small:W4A6,experts=4,routed_rank=16 W4A6
    qe compare cmp_…                   come back to one; Ctrl-C leaves its jobs running
    qe compare                         list them

    The options below are those of every candidate. Exit code 3 when a job failed, 4 when one was
    cancelled; a candidate that misses a limit of --accept-… is marked in the table, and no error.
    """
    with connected(url) as client:
        if model is None and calibration is None:
            if not candidates:
                return _listed(client, as_json=as_json)
            comparison = _existing(client, candidates, cancel=cancel)
        else:
            if model is None or calibration is None or cancel:
                wrong = "--cancel goes with a COMPARISON, as cmp_…" if cancel else "give --model and --calibration"
                raise click.UsageError(wrong)
            check_is_of_a_service(model)
            pairs = [candidate_of(text) for text in candidates]
            if len(pairs) < 2:
                raise click.UsageError("give at least two candidates, as W4A6 W4A6/gptq")
            task = evaluation_fields(options)
            body = body_of(**options)
            comparison = _created(
                client,
                calibration,
                idempotency_key,
                model=model,
                revision=revision,
                split=split,
                candidates=pairs,
                options=body.get("options"),
                task=task,
                accept_if=body.get("accept_if"),
                name=name,
                labels=labels_of(labels),
                timeout_s=timeout_s,
            )
            click.echo(f"{comparison.id}: {len(comparison.jobs)} jobs", err=True)
        if not no_wait and not comparison.finished:
            try:
                comparison = _watched(comparison)
            except KeyboardInterrupt:
                again = f"qe compare {comparison.id}"
                click.echo(f"{comparison.id} goes on. Come back: {again}   Stop it: {again} --cancel", err=True)
                return INTERRUPTED
        if plot is not None:
            save(plot, comparison.plot())
            click.echo(f"saved: {plot}", err=True)
    if as_json:
        print_json(comparison)
    else:
        print_table(comparison)
    return _code(comparison)


def _created(
    client: Client, calibration: str, idempotency_key: str | None, *, task: dict[str, Any] | None, **fields: Any
) -> Comparison:
    def ask(rows: str) -> Comparison:
        return client.comparisons.create(calibration=rows, evaluation=task_before_upload(task), **fields)

    fields["calibration"] = rows_of(client, calibration, ask=ask)
    return client.comparisons.create(evaluation=uploaded_task(client, task), idempotency_key=idempotency_key, **fields)


def candidate_of(text: str) -> Candidate:
    """``[LABEL:]SCHEME[/METHOD][,OPTION=VALUE]…``. Raises UsageError that says what is wrong."""
    label, colon, rest = text.partition(":")
    has_label = bool(colon) and "=" not in label
    what, *pairs = (rest if has_label else text).split(",")
    scheme, slash, method = what.partition("/")
    if not scheme or (slash and not method) or (has_label and not label):
        raise click.UsageError(f"candidate {text!r}: write [LABEL:]SCHEME[/METHOD][,OPTION=VALUE]…, as W4A6/gptq")
    options: dict[str, Any] = {}
    target: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"candidate {text!r}: {pair!r} is not OPTION=VALUE")
        name = key.strip().replace("-", "_")
        (target if name in ("max_bytes", "max_kl") else options)[name] = _value(value)
    candidate: Candidate = {"scheme": scheme}
    if method:
        candidate["method"] = method
    if has_label:
        candidate["label"] = label
    if options:
        candidate["options"] = options
    if target:
        candidate["target"] = target
    return candidate


def _value(text: str) -> Any:
    """A number, true, false, or the word itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _existing(client: Client, names: tuple[str, ...], *, cancel: bool) -> Comparison:
    if len(names) > 1 or not names[0].startswith("cmp_"):
        raise click.UsageError("give one COMPARISON, as cmp_…; or candidates with --model and --calibration")
    comparison = client.comparisons.get(names[0])
    return comparison.cancel() if cancel else comparison


def _listed(client: Client, *, as_json: bool) -> int:
    comparisons = list(islice(client.comparisons.list(), LISTED))
    if as_json:
        for comparison in comparisons:
            print_json(comparison)
    else:
        print_list(comparisons)
    return 0


def _watched(comparison: Comparison) -> Comparison:
    """The finished comparison. Meanwhile a live table on a terminal, else a line for every change of a job."""
    console = live_console()
    statuses: dict[str, str] = {}
    now = comparison
    with Live(console=console, transient=True, auto_refresh=False, redirect_stdout=False) as live:
        for now in comparison.watch():
            if console.is_terminal:
                live.update(table_of(now, width=console.width), refresh=True)
                continue
            for job in now.jobs:
                if statuses.get(job.job_id) != job.status:
                    console.print(f"{printable(job.label)} · {job.status}", markup=False, soft_wrap=True)
                statuses[job.job_id] = job.status
    return now


def _code(comparison: Comparison) -> int:
    """The exit code, with a line on stderr for every failed job."""
    for job in comparison.jobs:
        if job.error is not None:
            click.echo(f"{printable(job.label)}: error {job.error.code}: {printable(job.error.message)}", err=True)
    statuses = {job.status for job in comparison.jobs}
    if "failed" in statuses:
        return FAILED
    return CANCELLED if "cancelled" in statuses else 0
