"""What a worker and the keeper count, served as Prometheus text on ``QE_METRICS_PORT`` when that is set.

A counter belongs to the process that counts; what the ledger knows (jobs that wait or run, the oldest that waits,
workers alive) is served by the API instead, once for all (docs/adr/0018).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from core.ledger.states import JobStatus
from worker.nvidia import ask_gpus

logger = logging.getLogger(__name__)

MINUTES = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
"""Bounds in seconds, from the delay of a wake-up to a large block's time."""

REGISTRY = CollectorRegistry()
BLOCK_SECONDS = Histogram(
    "qe_worker_block_seconds", "Time to fit one decoder block.", buckets=MINUTES, registry=REGISTRY
)
CLAIM_WAIT = Histogram(
    "qe_worker_claim_wait_seconds",
    "From the moment a job could be taken to the moment this worker took it: the lag of the wake-up, or of the queue.",
    buckets=MINUTES,
    registry=REGISTRY,
)
FENCED = Counter(
    "qe_worker_fenced_writes_refused_total", "Writes that the ledger refused to a lost hold.", registry=REGISTRY
)
LEASES_LOST = Counter("qe_worker_leases_lost_total", "Jobs that this worker lost while it ran them.", registry=REGISTRY)
BEATS_FAILED = Counter("qe_worker_heartbeats_failed_total", "Beats that did not reach the ledger.", registry=REGISTRY)
LOST = "lost"
"""In place of a status: the job is another worker's."""
ATTEMPTS = Counter(
    "qe_worker_attempts_total", "Attempts by the status of the job after them.", ["status"], registry=REGISTRY
)
for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.QUEUED, LOST):
    ATTEMPTS.labels(status)  # from 0 on: of a series that begins at 1, Prometheus never sees the first
GIVEN_UP = Counter(
    "qe_worker_given_up_seconds_total",
    "Seconds of work lost because a block did not end within the time to drain.",
    registry=REGISTRY,
)
BUSY = Gauge("qe_worker_busy", "1 while a job is held.", registry=REGISTRY)
OWN_FAILURES = Gauge(
    "qe_worker_own_failures_in_a_row",
    "Jobs in a row that failed by what may be this worker's fault; a job that goes well sets it to 0.",
    registry=REGISTRY,
)
STOPPED = Gauge("qe_worker_stopped", "1 when this worker takes no job any more; its log says why.", registry=REGISTRY)
# Dashboards and alerts know the two names with "bells" and "rung", which were the word for wake-ups.
NOTIFICATIONS_LOST = Counter("qe_bells_not_rung_total", "Wake-ups that Redis did not take.", registry=REGISTRY)
REAPED = Counter("qe_keeper_reaped_total", "Jobs taken from workers that were not heard of.", registry=REGISTRY)
NOTIFIED_AGAIN = Counter(
    "qe_keeper_rung_again_total", "Queued jobs that nobody had picked up in time.", registry=REGISTRY
)
PUSHES = Counter("qe_keeper_pushes_total", "Pushes by their end.", ["status"], registry=REGISTRY)
for status in ("succeeded", "failed", "cancelled"):
    PUSHES.labels(status)


class GpuMemory(Collector):
    """Asked when somebody scrapes; nothing where there is no NVIDIA GPU."""

    uuid: str | None = None
    """Id of this worker's own GPU; None: all that there are."""

    def collect(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "qe_worker_gpu_memory_bytes", "Used and total memory of each GPU.", labels=["gpu", "kind"]
        )
        for line in ask_gpus("index,memory.used,memory.total", uuid=self.uuid):
            index, used, total = (part.strip() for part in line.split(","))
            for kind, mebibytes in (("used", used), ("total", total)):
                if mebibytes.isdecimal():
                    memory.add_metric([index, kind], float(mebibytes) * 2**20)
        yield memory


GPU_MEMORY = GpuMemory()
REGISTRY.register(GPU_MEMORY)


def serve_metrics(port: int, *, host: str = "0.0.0.0") -> None:  # noqa: S104 -- scraped from another machine
    """Serve them from a thread; 0 serves nothing. A port that is taken costs the metrics, never the work."""
    if port == 0:
        return
    try:
        start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        logger.warning("no metrics: port %d cannot be used: %s", port, error)
