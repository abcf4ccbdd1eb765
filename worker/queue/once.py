"""``qe worker --once``: at most one job, without Celery, for machines that are made for one job."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace

from core import preflight
from core.logs import configure_logging
from core.settings import read_settings
from core.tracing import open_tracing
from worker import metrics
from worker.machine.context import RUNNER
from worker.queue.celery_app import contexts_of, own_devices
from worker.queue.draining import Draining
from worker.queue.presence import present
from worker.runner import confinement
from worker.supervisor.supervisor import work


def work_once(name: str | None = None, *, runner: tuple[str, ...] = RUNNER) -> int:
    """The number of attempts, 0 or 1. SIGTERM gives the job back after its current block. Raises SystemExit."""
    settings = read_settings()
    if settings.database_url is None:
        raise SystemExit("a worker needs QE_DATABASE_URL (`qe serve` brings its own servers)")
    configure_logging(settings.log_format)
    preflight.check_packages("worker", "engine")
    preflight.check(settings, models=True, secret=settings.secret is not None)
    confinement.check(settings)
    draining = Draining()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: draining.begin())
    name = name or f"once-{os.getpid()}@{socket.gethostname()}"
    (context,) = contexts_of(settings, worker=name, draining=draining, devices=own_devices()[:1], runner=runner)
    metrics.GPU_MEMORY.uuid = context.device.uuid
    metrics.serve_metrics(settings.metrics_port)
    tracing = open_tracing(settings, "worker")
    with present(settings, [context]):
        attempts = work(replace(context, tracing=tracing), most=1)
    tracing.close()
    return attempts
