"""``qe report``: how good a finished job's checkpoint is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from quant_experts.commands.display.printable import printable
from quant_experts.commands.service_client import connected, json_option, save, say_warnings, url_option
from quant_experts.planning.number_text import size_text
from quant_experts.report.charts import numbers
from quant_experts.report.data import FEWEST_TOKENS

FIGURES: dict[str, tuple[str, str, Callable[[Any], str]]] = {
    "KL to full precision": ("quality", "kl", numbers.number),
    "KL of rounding alone": ("baseline", "kl", numbers.number),
    "same next token": ("quality", "top1_agreement", numbers.percent),
    "perplexity before": ("quality", "perplexity_full", numbers.perplexity),
    "perplexity after": ("quality", "perplexity_quantized", numbers.perplexity),
    "bits per weight": ("size", "effective_bits", numbers.bits),
    "size before": ("size", "bytes_before", size_text),
    "size after": ("size", "bytes_after", size_text),
    "memory when loaded": ("size", "bytes_loaded", size_text),
    "verdict": ("acceptance", "verdict", str),
}
"""Title → where it stands in the report, and how people read it."""


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
        for line in _lines(report):
            click.echo(line)
        say_warnings(job.warnings)


def _lines(report: dict[str, Any]) -> Iterator[str]:
    for title, (part, name, form) in FIGURES.items():
        figures = report.get(part) or {}
        value = figures.get(name)
        if form is numbers.perplexity and figures.get("tokens", FEWEST_TOKENS) < FEWEST_TOKENS:
            continue
        if value is not None:
            yield f"{title:<22} {form(value)}"
    for score in (report.get("evaluation") or {}).get("scores") or []:
        before = f" (before {numbers.percent(score['full']['value'])})" if score.get("full") else ""
        yield f"{score['name'].replace('_', ' '):<22} {numbers.percent(score['quantized']['value'])}{before}"
    for sentence in (report.get("acceptance") or {}).get("missed") or []:
        yield f"{'limit missed':<22} {printable(sentence)}"
