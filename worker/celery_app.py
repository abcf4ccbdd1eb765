"""Celery as a doorbell: it wakes a worker, and decides nothing.

    celery --app worker.celery_app:app worker --queues qe.jobs --pool prefork --concurrency 1

Every setting has its reason beside it; the ledger's rules are in ``ledger.py``.
"""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import billiard.pool
import psycopg
from celery import Celery, signals

from app.contract import bell
from app.logs import configure_logging
from app.settings import Settings, read_settings
from app.storage import storage_from_url
from app.tracing import check_tracing, open_tracing
from worker import device, metrics, process, tasks, workers
from worker.draining import Draining
from worker.hands import RUNNER, Hands
from worker.ledger import connect
from worker.ring import ring_quietly

logger = logging.getLogger(__name__)

app: Celery
"""Made when it is first asked for, because Celery's command line takes an app and not a factory."""


def create_celery(settings: Settings | None = None, *, runner: tuple[str, ...] = RUNNER) -> Celery:
    """The Celery app of a worker process; ``runner`` is the command that computes."""
    settings = settings or read_settings()
    if settings.redis_url is None or settings.database_url is None:
        raise SystemExit("a worker needs QE_DATABASE_URL and QE_REDIS_URL (`qe serve` brings its own servers)")
    try:
        check_tracing(settings)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    celery = Celery("quant_experts", broker=settings.redis_url, set_as_current=False)
    celery.conf.update(
        # Only the bell's queue, and only JSON: a message is a job id.
        task_default_queue=bell.QUEUE,
        task_create_missing_queues=False,
        task_queues={bell.QUEUE: {"exchange": "", "routing_key": bell.QUEUE}},
        accept_content=["json"],
        task_serializer="json",
        # Acknowledged when taken. A late ack of a job longer than the visibility timeout runs the job twice (tried).
        task_acks_late=False,
        # The answer is in the ledger.
        task_ignore_result=True,
        result_backend=None,
        # One bell at a time: with early ack, prefetch 1 still reserves a second one behind a running job (tried).
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # A solo pool answers no ping while it works; threads would share one process with the parent-death signal.
        worker_pool="prefork",
        # A worker outlives its broker: without Redis it goes on computing and rings again when Redis is back.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Nobody watches Celery's own events; progress is in the ledger.
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_hijack_root_logger=True,
        worker_redirect_stdouts=False,
        # No ETA and no revoke are used; a day's clock difference could otherwise delay a bell.
        enable_utc=True,
    )
    celery.task(tasks.ring, name=bell.TASK, bind=True)
    _connect_signals(celery, settings, runner)
    return celery


def hands_of(settings: Settings, *, worker: str, draining: Draining, runner: tuple[str, ...] = RUNNER) -> Hands:
    """The supervisor's tools, from the settings of this process."""
    return Hands(
        settings=settings,
        storage=storage_from_url(settings.resolved_storage_url),
        worker=worker,
        draining=draining.asked,
        ring=partial(ring_quietly, settings),
        runner=runner,
    )


def _connect_signals(celery: Celery, settings: Settings, runner: tuple[str, ...]) -> None:
    draining = Draining()
    over = threading.Event()

    def started(sender: Any, **_: Any) -> None:
        celery.worker_name = sender.hostname
        celery.hands = hands_of(settings, worker=sender.hostname, draining=draining, runner=runner)

    def ready(**_: Any) -> None:
        threading.Thread(
            target=_be_seen, args=(settings, celery.worker_name, over), name="presence", daemon=True
        ).start()
        # Bells rung while no worker lived, or lost with Redis, are made up for at once.
        ring_quietly(settings, "worker-ready")

    def child_started(**_: Any) -> None:
        # kill -9 of the parent must end the pool's child too, and with it the runner.
        process.die_with_parent()
        # A task that ends in the moment of SIGTERM: the parent no longer reads its result, and billiard 4.3 waits 30 s
        # for that before the child may end (1 stop in 70, tried). Nobody wants the result: one second is enough.
        billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 10
        # The one child is where blocks are counted; the parent only waits for bells.
        metrics.serve_metrics(settings.metrics_port)
        # Not before the fork: the thread that sends spans would stay behind.
        celery.hands = replace(celery.hands, tracing=open_tracing(settings, "worker"))

    def child_ended(**_: Any) -> None:
        celery.hands.tracing.close()

    def shutting_down(**_: Any) -> None:
        # Fires at once on SIGTERM with Celery's warm shutdown, while the pool's child is still busy (tried).
        draining.begin()

    def ended(**_: Any) -> None:
        over.set()
        _forget(settings, celery.worker_name)

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


def _be_seen(settings: Settings, name: str, over: threading.Event) -> None:
    described, has = device.describe(), device.capacity()
    while True:
        try:
            with connect(settings.database_url or "") as connection:
                workers.seen(connection, worker=name, host=socket.gethostname(), device=described, has=has)
        except psycopg.Error as error:
            logger.warning("the ledger did not hear that this worker lives: %s", error)
        if over.wait(settings.beat):
            return


def _forget(settings: Settings, name: str) -> None:
    try:
        with connect(settings.database_url or "") as connection:
            workers.gone(connection, worker=name)
    except psycopg.Error as error:
        logger.warning("the ledger did not hear that this worker ended: %s", error)


def __getattr__(name: str) -> Celery:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = made = create_celery()
    return made
