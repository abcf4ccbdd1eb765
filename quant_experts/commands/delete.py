"""``qe delete``: remove finished jobs of a service, or only their files."""

from __future__ import annotations

from datetime import datetime

import click

from quant_experts.client.views.jobs import Deleted
from quant_experts.commands.options.dates import Moment
from quant_experts.commands.service_client import connected, json_option, print_json, url_option

FINISHED = ("succeeded", "failed", "cancelled")


@click.command("delete", short_help="Remove finished jobs, or their files.")
@click.argument("job_ids", metavar="[JOB]...", nargs=-1)
@click.option("--status", multiple=True, type=click.Choice(FINISHED), help="Repeatable: jobs in any of these states.")
@click.option("--label", "labels", multiple=True, metavar="KEY[=VALUE]", help="Repeatable: jobs with all of these.")
@click.option("--model", metavar="ID", help="Jobs of exactly this model.")
@click.option("--finished-before", type=Moment(), metavar="DATE", help="Jobs that ended before then, in UTC.")
@click.option("--artifacts", is_flag=True, help="Only the files of the named jobs; the jobs stay with their figures.")
@click.option("--yes", is_flag=True, help="Do not ask before jobs that are not named are deleted.")
@json_option("The ids of what was deleted, as one JSON object.")
@url_option
def command(
    job_ids: tuple[str, ...],
    *,
    status: tuple[str, ...],
    labels: tuple[str, ...],
    model: str | None,
    finished_before: datetime | None,
    artifacts: bool,
    yes: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Remove every JOB that has finished, with its files, events and blocks; or all that the options select.

    Jobs that wait or run stay: qe cancel stops them. What was used stays in qe usage.
    """
    has_filter = bool(status or labels or model or finished_before)
    if bool(job_ids) == has_filter:
        raise click.UsageError("name jobs, or select them with --status, --label, --model, --finished-before")
    if artifacts and has_filter:
        raise click.UsageError("--artifacts goes with named jobs")
    if has_filter and not yes:
        click.confirm("Delete every finished job that the options select?", abort=True, err=True)
    with connected(url) as client:
        if artifacts:
            for job_id in job_ids:
                client.jobs.delete_artifacts(job_id)
            ids = list(job_ids)
        elif job_ids:
            for job_id in job_ids:
                client.jobs.delete(job_id)
            ids = list(job_ids)
        else:
            pairs = (label.partition("=") for label in labels)
            label = {key: value if equals else None for key, equals, value in pairs}
            ids = client.jobs.delete_many(status=status, label=label, model=model, finished_before=finished_before)
    if as_json:
        print_json(Deleted(deleted=ids, has_more=False))
    else:
        click.echo(f"{len(ids)} {'jobs without their files' if artifacts else 'jobs deleted'}")
