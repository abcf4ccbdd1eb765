"""``qe worker``: a worker of a service that runs elsewhere."""

from __future__ import annotations

import os

import click

from core import wakeup


@click.command()
@click.option("--name", help="What the ledger calls it; no other worker may have the same.  [default: celery@HOST]")
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    help="When stopped, give the block in hand up after this long rather than wait for its end.  [default: wait]",
)
@click.option("--once", is_flag=True, help="Run at most one job, on the first GPU, and end with 0.")
def worker(name: str | None, drain_seconds: float | None, once: bool) -> None:
    """Run jobs of the service behind QE_DATABASE_URL, QE_REDIS_URL and QE_STORAGE_URL, one at a time on each GPU.

    CUDA_VISIBLE_DEVICES chooses among the GPUs. On SIGTERM each job in hand is given back after its current decoder
    block. Every setting is in docs/deployment.md.
    """
    if drain_seconds is not None:
        os.environ["QE_DRAIN_SECONDS"] = str(drain_seconds)
    if once:
        from worker.queue.once import work_once

        click.echo("an attempt at one job has ended" if work_once(name) else "no job waits")
        return
    from worker.queue.celery_app import create_celery

    options = [
        "--queues",
        wakeup.QUEUE,
        "--pool",
        "prefork",
        "--without-gossip",
        "--without-mingle",
        "--loglevel",
        "INFO",
    ]
    create_celery().worker_main(["worker", *options, *(["--hostname", name] if name else [])])


if __name__ == "__main__":
    worker()
