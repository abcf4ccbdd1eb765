"""``qe submit``: the job of ``qe quantize`` on a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quant_experts.client import Client
from quant_experts.commands.service_client import connected, json_option, print_json, url_option
from quant_experts.commands.spec_options import body_of, spec_options
from quant_experts.commands.watch import watch


@click.command("submit", short_help="Queue a quantization on a service.")
@click.option("--model", required=True, metavar="ID", help="Hub id owner/name, or local/NAME below its model root.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@click.option(
    "--calibration",
    required=True,
    metavar="FILE|ID",
    help="JSONL or Parquet file, uploaded unless the service has it; or ds_…; or a hub dataset id.",
)
@click.option("--split", metavar="NAME", help="Split of a hub dataset.  [default: train]")
@spec_options
@click.option("--name", metavar="TEXT", help="What people call the job.")
@click.option("--alias", metavar="OWNER/NAME", help="Under which the Hub protocol serves the finished checkpoint.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Repeatable; qe jobs --label finds it.")
@click.option("--timeout", "timeout_s", type=int, metavar="S", help="Seconds after which it fails.  [default: a day]")
@click.option("--idempotency-key", metavar="TEXT", help="The same command with the same key makes one job in 24 hours.")
@click.option("--watch", "and_watch", is_flag=True, help="Then follow it, as qe watch does.")
@json_option("The job as one JSON object on stdout; with --watch, then its events.")
@url_option
def command(
    *,
    model: str,
    revision: str | None,
    calibration: str,
    split: str | None,
    name: str | None,
    alias: str | None,
    labels: tuple[str, ...],
    timeout_s: int | None,
    idempotency_key: str | None,
    and_watch: bool,
    as_json: bool,
    url: str | None,
    **options: Any,
) -> int:
    """Queue the quantization of MODEL on a service and print the job's id."""
    body = body_of(**options)
    with connected(url) as client:
        job = client.jobs.create(
            model=model,
            revision=revision,
            calibration=_rows(client, calibration),
            split=split,
            name=name,
            alias=alias,
            labels=_labels(labels),
            timeout_s=timeout_s,
            idempotency_key=idempotency_key,
            **body,
        )
        if as_json:
            print_json(job)
        else:
            click.echo(job.id)
        if and_watch:
            return watch(client, job.id, as_json=as_json)
    click.echo(f"Follow it: qe watch {job.id}", err=True)
    return 0


def _rows(client: Client, calibration: str) -> str:
    """The id of the rows; a file of this machine is uploaded."""
    path = Path(calibration)
    if not path.is_file():
        if path.suffix in (".jsonl", ".parquet"):
            raise click.UsageError(f"--calibration: there is no file {calibration}")
        return calibration
    dataset = client.datasets.upload(path)
    click.echo(f"{path.name}: {dataset.rows} rows as {dataset.id}", err=True)
    return dataset.id


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--label {pair}: write KEY=VALUE")
        labels[key] = value
    return labels
