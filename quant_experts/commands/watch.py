"""``qe watch``: follow a job of a service to its end."""

from __future__ import annotations

from collections.abc import Iterator

import click

from quant_experts.client import Client, Job
from quant_experts.commands.display.job_progress import JobProgress
from quant_experts.commands.display.printable import printable
from quant_experts.commands.exit_codes import INTERRUPTED, OF_A_JOB, REJECTED
from quant_experts.commands.service_client import connected, exit_code, json_option, print_json, url_option


@click.command("watch", short_help="Follow a job to its end.", epilog=OF_A_JOB)
@click.argument("job_id", metavar="JOB")
@json_option("One JSON object per event on stdout, as they happen.")
@url_option
def command(job_id: str, *, as_json: bool, url: str | None) -> int:
    """Follow JOB to its end, over dropped connections and restarts of the service. Ctrl-C leaves the job running."""
    with connected(url) as client:
        return watch(client, job_id, as_json=as_json)


def watch(client: Client, job_id: str, *, as_json: bool) -> int:
    """The exit code of the finished job."""
    job: Job = client.jobs.get(job_id)
    try:
        if as_json:
            for event in job.follow():
                print_json(event)
        else:
            with JobProgress(job.id) as display:
                for event in job.follow():
                    display.on_event(event)
    except KeyboardInterrupt:
        click.echo(f"{job.id} goes on. Come back: qe watch {job.id}   Stop it: qe cancel {job.id}", err=True)
        return INTERRUPTED
    job = job.refresh()
    code = exit_code(job)
    if code in (0, REJECTED) and not as_json:
        count = len(job.warnings)
        if count:
            click.echo(f"{count} warning{'s' if count > 1 else ''}, listed by qe report {job.id}", err=True)
        task = (job.summary or {}).get("evaluation")
        for line in (*([task["sentence"]] if task else []), *_exports(job)):
            click.echo(printable(line), err=True)
        click.echo(f"{job.id} succeeded. Files: qe pull {job.id}   Report: qe report {job.id}", err=True)
    return code


def _exports(job: Job) -> Iterator[str]:
    """What came of each export, and how to get it."""
    for each in (job.summary or {}).get("exports") or []:
        name, problem = each.get("format"), each.get("problem")
        if problem:
            yield f"export {name}: not made: {problem}"
        else:
            yield f"export {name}: qe pull {job.id} --export {name}"
            yield from (f"export {name}: not in it: {loss}" for loss in each.get("losses") or [])
