"""``qe logs``: what happened to a job, as text."""

from __future__ import annotations

import click

from quant_experts.commands.service_client import connected, url_option


@click.command("logs", short_help="Show what happened to a job, a line for each event.")
@click.argument("job_id", metavar="JOB")
@click.option(
    "--tail", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="How many of the last lines."
)
@url_option
def command(job_id: str, *, tail: int, url: str | None) -> None:
    """The events of JOB, oldest first. qe watch follows them live."""
    with connected(url) as client:
        click.echo(client.jobs.get(job_id).log(tail=tail), nl=False)
