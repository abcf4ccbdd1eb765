"""That a worker lives: told to the ledger, for people to look at, and to the heartbeat file, for health checks."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator, Sequence

import psycopg

from app.heartbeat import touched_by_thread
from app.settings import Settings
from worker import device, workers
from worker.hands import Hands
from worker.ledger import connect

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def present(settings: Settings, slots: Sequence[Hands]) -> Iterator[None]:
    """While inside, the worker of each slot is seen; afterwards it is gone."""
    over = threading.Event()
    threading.Thread(target=_be_seen, args=(settings, slots, over), name="presence", daemon=True).start()
    with touched_by_thread(settings.heartbeat_file):
        try:
            yield
        finally:
            over.set()
            _forget(settings, slots)


def _be_seen(settings: Settings, slots: Sequence[Hands], over: threading.Event) -> None:
    host = socket.gethostname()
    while True:
        try:
            with connect(settings.database_url or "") as connection:
                for slot in slots:
                    has = device.capacity(slot.device, sharing=slot.sharing)
                    workers.seen(connection, worker=slot.worker, host=host, device=slot.device.name, has=has)
        except psycopg.Error as error:
            logger.warning("the ledger did not hear that this worker lives: %s", error)
        if over.wait(settings.beat):
            return


def _forget(settings: Settings, slots: Sequence[Hands]) -> None:
    try:
        with connect(settings.database_url or "") as connection:
            for slot in slots:
                workers.gone(connection, worker=slot.worker)
    except psycopg.Error as error:
        logger.warning("the ledger did not hear that this worker ended: %s", error)
