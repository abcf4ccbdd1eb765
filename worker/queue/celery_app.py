"""Celery delivers wake-ups to workers and decides nothing.

    celery --app worker.queue.celery_app:app worker --queues qe.jobs

which is what ``qe worker`` runs. The process owns the GPUs of its machine, or those of ``CUDA_VISIBLE_DEVICES``: its
pool has one child per GPU, each a worker of its own in the ledger, which claims a job when its GPU is free.
Every setting has its reason beside it; the ledger decides which job a worker gets (``worker.ledger.claims``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import billiard
import billiard.pool
from celery import Celery, signals

from core import preflight, wakeup
from core.logs import configure_logging
from core.settings import Settings, read_settings
from core.storage import storage_from_url
from core.tracing import open_tracing
from worker import metrics, process
from worker.machine import device
from worker.machine.context import RUNNER, WorkerContext
from worker.machine.device import Device
from worker.notify import notify_workers
from worker.queue.draining import Draining
from worker.queue.presence import present
from worker.runner import confinement
from worker.supervisor.supervisor import pass_on, work

logger = logging.getLogger(__name__)

app: Celery
"""Made when it is first asked for, because Celery's command line takes an app and not a factory."""


def create_celery(settings: Settings | None = None, *, runner: tuple[str, ...] = RUNNER) -> Celery:
    """The Celery app of a worker process; ``runner`` is the command that computes."""
    from_environment = settings is None
    settings = settings or read_settings()
    if settings.redis_url is None or settings.database_url is None:
        raise SystemExit("a worker needs QE_DATABASE_URL and QE_REDIS_URL (`qe serve` brings its own servers)")
    if from_environment:
        preflight.check_packages("worker", "engine")
        preflight.check(settings, models=True, secret=settings.secret is not None)
    devices = own_devices()
    celery = Celery("quant_experts", broker=settings.redis_url, set_as_current=False)
    celery.conf.update(
        # Only the queue of wake-ups, and only JSON: a message is a job id.
        task_default_queue=wakeup.QUEUE,
        task_create_missing_queues=False,
        task_queues={wakeup.QUEUE: {"exchange": "", "routing_key": wakeup.QUEUE}},
        accept_content=["json"],
        task_serializer="json",
        # Acknowledged when taken. A late ack of a job longer than the visibility timeout runs the job twice (tried).
        task_acks_late=False,
        # The answer is in the ledger.
        task_ignore_result=True,
        result_backend=None,
        worker_concurrency=len(devices),
        # One message at a time: with early ack, prefetch 1 still reserves a second one behind a running job (tried).
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # A solo pool answers no ping while it works; threads would share one process with the parent-death signal.
        worker_pool="prefork",
        # A worker outlives its broker: without Redis it goes on computing and sends again when Redis is back.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Nobody watches Celery's own events; progress is in the ledger.
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_hijack_root_logger=True,
        worker_redirect_stdouts=False,
        # No ETA and no revoke are used; a day's clock difference could otherwise delay a wake-up.
        enable_utc=True,
    )
    celery.task(on_wake_up, name=wakeup.TASK, bind=True)
    _connect_signals(celery, settings, devices, runner)
    return celery


def on_wake_up(task: Any, job_id: str) -> int:
    """The only Celery task: a wake-up. Claims and runs jobs until none is left that this worker can take.

    ``job_id`` may be late or doubled. When this worker took no job and ``job_id`` still waits, others are woken.
    """
    attempts = work(task.app.context)
    if attempts == 0:
        pass_on(task.app.context, job_id)
    return attempts


def contexts_of(
    settings: Settings, *, worker: str, draining: Draining, devices: Sequence[Device], runner: tuple[str, ...] = RUNNER
) -> list[WorkerContext]:
    """The tools of a supervisor per device, from the settings of this process."""
    first = WorkerContext(
        settings=settings,
        storage=storage_from_url(settings.resolved_storage_url),
        worker=worker,
        draining=draining.asked,
        notify=partial(notify_workers, settings),
        runner=runner,
        sharing=len(devices),
    )
    if len(devices) == 1:
        return [replace(first, device=devices[0])]
    return [replace(first, worker=f"{worker}/{number}", device=each) for number, each in enumerate(devices)]


def own_devices() -> list[Device]:
    """Raises SystemExit."""
    try:
        return device.devices()
    except device.NoSuchDevice as error:
        raise SystemExit(str(error)) from error


def _connect_signals(celery: Celery, settings: Settings, devices: Sequence[Device], runner: tuple[str, ...]) -> None:
    draining = Draining()
    presence = contextlib.ExitStack()

    def started(sender: Any, **_: Any) -> None:
        confinement.check(settings)
        if sender.concurrency > len(devices):
            raise SystemExit(
                f"--concurrency {sender.concurrency}: this worker has {len(devices)} devices, and one runs one job at a"
                " time"
            )
        celery.slots = contexts_of(
            settings, worker=sender.hostname, draining=draining, devices=devices[: sender.concurrency], runner=runner
        )

    def ready(**_: Any) -> None:
        presence.enter_context(present(settings, celery.slots))
        # Makes up for wake-ups that were sent while no worker lived, or lost with Redis.
        for slot in celery.slots:
            notify_workers(settings, f"{slot.worker} is ready")

    def child_started(**_: Any) -> None:
        # kill -9 of the parent must end the pool's child too, and with it the runner.
        process.die_with_parent()
        # A task that ends in the moment of SIGTERM: the parent no longer reads its result, and billiard 4.3 waits 30 s
        # for that before the child may end (1 stop in 70, tried). Nobody wants the result: one second is enough.
        billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 10
        number = getattr(billiard.current_process(), "index", 0)  # the next child after one that died has its number
        slot = celery.slots[number]
        # The child is where blocks are counted; the parent only waits for wake-ups.
        metrics.GPU_MEMORY.uuid = slot.device.uuid
        metrics.serve_metrics(settings.metrics_port and settings.metrics_port + number)
        # Not before the fork: the thread that sends spans would stay behind.
        celery.context = replace(slot, tracing=open_tracing(settings, "worker"))

    def child_ended(**_: Any) -> None:
        celery.context.tracing.close()

    def shutting_down(**_: Any) -> None:
        # Fires at once on SIGTERM with Celery's warm shutdown, while the pool's child is still busy (tried).
        draining.begin()

    def ended(**_: Any) -> None:
        presence.close()

    def logging_wanted(**_: Any) -> None:
        # That somebody listens to this signal is what keeps Celery from formatting lines in its own way.
        configure_logging(settings.log_format)

    signals.setup_logging.connect(logging_wanted, weak=False)
    signals.worker_init.connect(started, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_process_init.connect(child_started, weak=False)
    signals.worker_process_shutdown.connect(child_ended, weak=False)
    signals.worker_shutting_down.connect(shutting_down, weak=False)
    signals.worker_shutdown.connect(ended, weak=False)


def __getattr__(name: str) -> Celery:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = celery = create_celery()
    return celery
