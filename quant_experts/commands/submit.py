"""``qe submit``: the job of ``qe quantize`` on a service."""

from __future__ import annotations

from typing import Any

import click

from quant_experts.commands.job_options import CALIBRATION, handed_over, job_options, labels_of, rows_of
from quant_experts.commands.service_client import connected, json_option, url_option
from quant_experts.commands.spec_options import body_of, spec_options


@click.command("submit", short_help="Queue a quantization on a service.")
@click.option("--model", required=True, metavar="ID", help="Hub id owner/name, or local/NAME below its model root.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@click.option(
    "--calibration",
    required=True,
    metavar="FILE|ID",
    help=CALIBRATION,
)
@click.option("--split", metavar="NAME", help="Split of a hub dataset.  [default: train]")
@spec_options
@job_options
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
            calibration=rows_of(client, calibration),
            split=split,
            name=name,
            alias=alias,
            labels=labels_of(labels),
            timeout_s=timeout_s,
            idempotency_key=idempotency_key,
            **body,
        )
        return handed_over(client, job, as_json=as_json, and_watch=and_watch)
