"""``qe usage``: usage, stored bytes and limits of a tenant."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal

import click

from quant_experts.client import Usage
from quant_experts.client.views.account import Period
from quant_experts.commands.display.table import print_rows
from quant_experts.commands.options.dates import Moment
from quant_experts.commands.service_client import connected, json_option, print_json, url_option
from quant_experts.planning.number_text import size_text

COUNTS = ("jobs_created", "jobs_succeeded", "jobs_failed", "jobs_cancelled")
TITLES = ("created", "succeeded", "failed", "cancelled", "workers h:m:s", "GPUs h:m:s", "bytes added")


@click.command("usage", short_help="Jobs, GPU time, bytes and limits of a service.")
@click.option("--since", type=Moment(), metavar="DATE", help="From then on, in UTC.  [default: 30 days before]")
@click.option("--until", type=Moment(), metavar="DATE", help="Up to then.  [default: now]")
@click.option("--by", type=click.Choice(["day", "month"]), default="day", show_default=True, help="One row for each.")
@json_option("All of it as one JSON object on stdout.")
@url_option
def command(
    *, since: datetime | None, until: datetime | None, by: Literal["day", "month"], as_json: bool, url: str | None
) -> None:
    """What your tenant used, by day or month in UTC; what it has stored and queued now, and how much it may."""
    with connected(url) as client:
        usage = client.usage(since=since, until=until, by=by)
    if as_json:
        print_json(usage)
        return
    day = "%Y-%m-%d" if by == "day" else "%Y-%m"
    rows = [(period.start.strftime(day), *_cells(period)) for period in usage.periods]
    rows.append(("total", *_cells(_sum(usage))))
    print_rows((by, *TITLES), rows, right=TITLES)
    for line in _now(usage):
        click.echo(line)


def _cells(period: Period) -> tuple[str, ...]:
    counts = (f"{getattr(period, name):,}" for name in COUNTS)
    return (*counts, _clock(period.worker_seconds), _clock(period.gpu_seconds), size_text(period.bytes_added))


def _sum(usage: Usage) -> Period:
    total = Period(start=usage.since)
    for name in (*COUNTS, "worker_seconds", "gpu_seconds", "bytes_added"):
        setattr(total, name, sum(getattr(period, name) for period in usage.periods))
    return total


def _now(usage: Usage) -> Iterator[str]:
    storage, limits, jobs = usage.stored, usage.limits, usage.unfinished
    most = f" of {size_text(limits.stored_bytes)}" if limits else ""
    parts = {"datasets": storage.datasets, "artifacts": storage.artifacts, "unfinished uploads": storage.uploads}
    shares = ", ".join(f"{name} {size_text(part)}" for name, part in parts.items())
    yield f"stored: {size_text(storage.total)}{most} ({shares})"
    if limits is None or jobs is None:
        return
    at_once = "" if limits.running_jobs is None else f" of {limits.running_jobs:,}"
    yield f"jobs now: {jobs.queued:,} of {limits.queued_jobs:,} queued, {jobs.running:,}{at_once} running"
    rate = "no limit" if limits.requests_per_minute is None else f"{limits.requests_per_minute:,} a minute"
    yield f"requests of a key: {rate}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).replace(" days, ", "d ").replace(" day, ", "d ")
