"""``qe push``: the files of a job to a repository of the hub or into a bucket."""

from __future__ import annotations

import time

import click

from quant_experts.client import Client, PushView
from quant_experts.client.views.pushes import ENDED
from quant_experts.commands.display.printable import printable
from quant_experts.commands.service_client import connected, json_option, print_json, url_option
from quant_experts.spec.exports import EXPORT_FORMATS

TICK_SECONDS = 1.0


@click.command("push", short_help="Push a job's files to a hub repository or a bucket.")
@click.argument("job_id", metavar="JOB")
@click.option("--to", metavar="DEST", help="hub:owner/name, or s3://bucket/prefix. Without it: the job's pushes.")
@click.option("--export", type=click.Choice(EXPORT_FORMATS), help="This export.  [default: the checkpoint]")
@click.option("--public", is_flag=True, help="Also into a public repository; a new one becomes public.")
@click.option("--wait", "and_wait", is_flag=True, help="Until it has ended; the exit code says how.")
@click.option("--cancel", "cancelled", metavar="PUSH", help="End this push where it stands.")
@json_option("One JSON object per push and line.")
@url_option
def command(
    *,
    job_id: str,
    to: str | None,
    export: str | None,
    public: bool,
    and_wait: bool,
    cancelled: str | None,
    as_json: bool,
    url: str | None,
) -> int:
    """Push the files of JOB with your own hub token (qe hub-token) or key of the bucket (qe buckets). What is there
    already is not sent again. A job that has not ended is pushed as soon as it has succeeded."""
    if to is None and (export or public or and_wait):
        raise click.UsageError("--to: say where the files go")
    if to is not None and cancelled is not None:
        raise click.UsageError("--cancel ends a push, --to makes one: leave one of them out")
    with connected(url) as client:
        job = client.jobs.get(job_id)
        if to is not None:
            pushes = [job.push(to, export=export, private=not public)]
            if and_wait:
                pushes = [_ended(client, pushes[0])]
        else:
            pushes = [job.cancel_push(cancelled)] if cancelled is not None else list(job.pushes())
        for push in pushes:
            if as_json:
                print_json(push)
            else:
                click.echo(printable(_line(push)))
    return int(and_wait and pushes[0].status != "succeeded")


def _ended(client: Client, push: PushView) -> PushView:
    job = client.jobs.get(push.job_id)
    said = None
    while push.status not in ENDED:
        time.sleep(TICK_SECONDS)
        push = job.get_push(push.id)
        if push.error is not None and push.error != said and push.status not in ENDED:
            said = push.error
            click.echo(printable(f"it is tried again: {said}"), err=True)
    return push


def _line(push: PushView) -> str:
    what = f" ({push.export})" if push.export else ""
    line = f"{push.id} {push.status} {push.to}{what}"
    if push.status not in ENDED and push.files.total is not None:
        line += f", {push.files.done} of {push.files.total} files"
    if push.result is not None:
        line += f", {push.result.url}" + (f" at {push.result.commit}" if push.result.commit else "")
    return line + (f": {push.error}" if push.error else "")
