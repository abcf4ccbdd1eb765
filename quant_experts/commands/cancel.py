"""``qe cancel``: stop jobs of a service."""

from __future__ import annotations

import click

from quant_experts.commands.service_client import connected, json_option, print_json, url_option


@click.command("cancel", short_help="Stop jobs.")
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@json_option("One JSON object per job and line.")
@url_option
def command(job_ids: tuple[str, ...], *, as_json: bool, url: str | None) -> None:
    """Stop every JOB. A running one is cancelling until its worker has let go; qe retry takes it up again."""
    with connected(url) as client:
        for job_id in job_ids:
            job = client.jobs.cancel(job_id)
            if as_json:
                print_json(job)
            else:
                click.echo(f"{job.id} {job.status}")
