"""``qe retry``: queue failed or cancelled jobs of a service again."""

from __future__ import annotations

import click

from quant_experts.commands.service_client import connected, json_option, print_json, url_option


@click.command("retry", short_help="Queue failed or cancelled jobs again.")
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@json_option("One JSON object per job and line.")
@url_option
def command(job_ids: tuple[str, ...], *, as_json: bool, url: str | None) -> None:
    """Queue every JOB again; each goes on after its last finished block."""
    with connected(url) as client:
        for job_id in job_ids:
            job = client.jobs.retry(job_id)
            if as_json:
                print_json(job)
            else:
                click.echo(f"{job.id} {job.status}, {job.progress.blocks_done} blocks are kept")
