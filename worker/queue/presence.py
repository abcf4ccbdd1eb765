"""Tell that a worker is alive: the ledger, for people to look at, and the liveness file, for health checks."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import psycopg

from core.liveness_file import touched_by_thread
from core.settings import Settings
from worker.ledger import workers
from worker.ledger.connection import connect
from worker.machine import device, hub_copies
from worker.machine.context import WorkerContext

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0


@contextlib.contextmanager
def present(settings: Settings, slots: Sequence[WorkerContext]) -> Iterator[None]:
    """While inside, the worker of each slot is seen; afterwards it is gone."""
    over = threading.Event()
    threading.Thread(target=_be_seen, args=(settings, slots, over), name="presence", daemon=True).start()
    with touched_by_thread(settings.heartbeat_file):
        try:
            yield
        finally:
            over.set()
            _forget(settings, slots)


def _be_seen(settings: Settings, slots: Sequence[WorkerContext], over: threading.Event) -> None:
    host, begins, next_sweep = socket.gethostname(), True, 0.0
    while True:
        try:
            with connect(settings.database_url or "") as connection:
                for slot in slots:
                    has = device.capacity(slot.device, sharing=slot.sharing)
                    name = slot.device.name
                    free = device.free_disk(settings)
                    workers.record_worker(
                        connection,
                        worker=slot.worker,
                        host=host,
                        device=name,
                        has=has,
                        free_disk=free,
                        begins=begins,
                    )
            begins = False
        except psycopg.Error as error:
            logger.warning("could not tell the ledger that this worker is alive: %s", error)
        if time.monotonic() >= next_sweep:
            _drop_unused_copies(settings)
            next_sweep = time.monotonic() + SWEEP_SECONDS
        if over.wait(settings.beat):
            return


def _drop_unused_copies(settings: Settings) -> None:
    try:
        count = hub_copies.drop_unused_copies(settings.resolved_home, days=settings.keep_models_days)
    except OSError as error:
        logger.warning("could not remove copies of models: %s", error)
    else:
        logger.info("removed %d copies of models and datasets that no job uses", count)


def _forget(settings: Settings, slots: Sequence[WorkerContext]) -> None:
    try:
        with connect(settings.database_url or "") as connection:
            for slot in slots:
                workers.remove_worker(connection, worker=slot.worker)
    except psycopg.Error as error:
        logger.warning("could not tell the ledger that this worker has ended: %s", error)
