"""``qe jobs``: what a service has to do and has done."""

from __future__ import annotations

from itertools import islice

import click

from quant_experts.client import JobView
from quant_experts.commands.display.dates import to_the_minute, to_the_second
from quant_experts.commands.display.printable import printable
from quant_experts.commands.display.table import print_rows
from quant_experts.commands.service_client import connected, json_option, missed_limits, print_json, url_option

STATUSES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")


@click.command("jobs", short_help="List jobs of a service, or show one.")
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--status", multiple=True, type=click.Choice(STATUSES), help="Repeatable: any of these.")
@click.option("--label", "labels", multiple=True, metavar="KEY[=VALUE]", help="Repeatable: all of these.")
@click.option("--model", metavar="ID", help="Exactly this model.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Newest first.")
@json_option("One JSON object per job and line.")
@url_option
def command(
    job_id: str | None,
    *,
    status: tuple[str, ...],
    labels: tuple[str, ...],
    model: str | None,
    limit: int,
    as_json: bool,
    url: str | None,
) -> None:
    """List jobs, newest first; with JOB, that one."""
    with connected(url) as client:
        if job_id is not None:
            jobs: list[JobView] = [client.jobs.get(job_id)]
        else:
            pairs = (label.partition("=") for label in labels)
            label_values = {key: value if equals else None for key, equals, value in pairs}
            page = client.jobs.list(status=status, label=label_values, model=model, page_size=min(limit, 100))
            jobs = list(islice(page, limit))
    if as_json:
        for job in jobs:
            print_json(job)
    elif job_id is not None:
        _show(jobs[0])
    else:
        _table(jobs)


def _table(jobs: list[JobView]) -> None:
    rows = [
        (
            job.id,
            job.status if job.verdict != "rejected" else "rejected",
            printable(ended_how(job) or (job.waiting.code if job.waiting else progress_of(job))),
            printable(job.name or job.model.id),
            printable(job.alias or ""),
            job.scheme,
            to_the_minute(job.created_at),
        )
        for job in jobs
    ]
    print_rows(("job", "status", "progress", "name", "alias", "scheme", "created"), rows, whole=("status",))


def ended_how(job: JobView) -> str:
    """Which limit a rejected job has missed, or what a failed one failed with."""
    if job.verdict == "rejected":
        return "; ".join(missed_limits(job))
    return job.error.code if job.error else ""


def _show(job: JobView) -> None:
    lines = {
        "job": job.id,
        "name": job.name,
        "status": job.status,
        "progress": progress_of(job),
        "model": job.model.id,
        "calibration": job.calibration.dataset,
        "scheme": f"{job.scheme}, method {job.method}",
        "labels": ", ".join(f"{key}={value}" for key, value in job.labels.items()),
        "attempts": str(job.attempts),
        "worker": job.worker,
        "waits": job.waiting.message if job.waiting else None,
        "alias": job.alias,
        "verdict": ": ".join(filter(None, (job.verdict, ended_how(job) if job.verdict else ""))),
        "warnings": "; ".join(job.warnings),
        "error": f"{job.error.code}: {job.error.message}" if job.error else None,
        "created": to_the_second(job.created_at),
        "started": to_the_second(job.started_at),
        "finished": to_the_second(job.finished_at),
    }
    for title, value in lines.items():
        if value:
            click.echo(f"{title:<12} {printable(value)}")


def progress_of(job: JobView) -> str:
    """``fitting 7/28, 25 %, 4 min left``."""
    progress = job.progress
    parts = [job.phase or "", f"{progress.blocks_done}/{progress.blocks_total}" if progress.blocks_total else ""]
    rest = f", {max(1, round(progress.eta_seconds / 60))} min left" if progress.eta_seconds else ""
    share = f", {progress.fraction:.0%}" if rest and progress.fraction is not None else ""
    return " ".join(part for part in parts if part) + share + rest
