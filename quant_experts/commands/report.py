"""``qe report``: how good a finished job's checkpoint is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from quant_experts.commands.service_client import connected, json_option, save, url_option

FIGURES = {
    "KL to full precision": ("quality", "kl"),
    "KL of rounding alone": ("baseline", "kl"),
    "same next token": ("quality", "top1_agreement"),
    "perplexity before": ("quality", "perplexity_full"),
    "perplexity after": ("quality", "perplexity_quantized"),
    "bits per weight": ("size", "effective_bits"),
    "bytes before": ("size", "bytes_before"),
    "bytes after": ("size", "bytes_after"),
    "verdict": ("acceptance", "verdict"),
}


@click.command("report", short_help="Show a finished job's quality report.")
@click.argument("job_id", metavar="JOB")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save the page for people."
)
@json_option("The whole report as JSON on stdout.")
@url_option
def command(job_id: str, *, html: Path | None, as_json: bool, url: str | None) -> None:
    """The headline figures of JOB; all of them are in its JSON and its page."""
    with connected(url) as client:
        job = client.jobs.get(job_id)
        if html is not None:
            save(html, job.report_page())
        if html is None or as_json:
            report = job.report()
    if html is not None:
        click.echo(f"saved: {html}", err=True)
    if as_json:
        click.echo(json.dumps(report))
    elif html is None:
        for title, (part, name) in FIGURES.items():
            value = _figure(report, part, name)
            if value is not None:
                click.echo(f"{title:<22} {value}")


def _figure(report: dict[str, Any], part: str, name: str) -> str | None:
    value = (report.get(part) or {}).get(name)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
