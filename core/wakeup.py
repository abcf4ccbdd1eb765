"""The wake-up: a Celery message that carries a job id and nothing else.

PostgreSQL decides what runs. The message only spares a worker the wait, so it may be lost, doubled or late without
harm. The API sends it with kombu in Celery's message format, so that it needs neither Celery nor the worker's code.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Protocol

from kombu import Connection, Producer

QUEUE = "qe.jobs"
TASK = "worker.tasks.ring"
"""The name on the wire. It stays when code moves: in a rolling upgrade old and new processes share the queue."""
MOST_WAKE_UPS = 200
"""Messages in the queue beyond which no more are sent. A worker that gets one works until no job waits, so these wake
200 workers. Without workers the keeper would otherwise add a message per waiting job each minute (2,000 jobs: 1.7 GB a
day)."""
AT_ONCE = 4
"""Connections of one process to the broker; who comes when all are in use waits."""


class Notifier(Protocol):
    def notify(self, *job_ids: str) -> None:
        """Tell workers that these jobs wait. Raises when the broker is unreachable; the keeper notifies again."""


class RedisNotifier:
    """Sends through Redis, from any thread. Connections are reused: opening one takes 6 ms of CPU."""

    def __init__(self, redis_url: str, *, timeout: float = 2.0) -> None:
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        self._connections = Connection(redis_url, transport_options=options, connect_timeout=timeout).Pool(AT_ONCE)

    def notify(self, *job_ids: str) -> None:
        with self._connections.acquire(block=True) as connection:
            try:
                _notify(connection, job_ids)
            except BaseException:
                connection.collect()  # the next one begins anew, whatever state this one is in
                raise


def _notify(connection: Connection, job_ids: Sequence[str]) -> None:
    channel = connection.default_channel
    producer = Producer(channel, auto_declare=False)
    for job_id in job_ids[: max(0, MOST_WAKE_UPS - channel.client.llen(QUEUE))]:
        _publish(producer, job_id)


def _publish(producer: Producer, job_id: str) -> None:
    task_id = str(uuid.uuid4())
    producer.publish(
        [[job_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}],
        routing_key=QUEUE,
        exchange="",
        serializer="json",
        headers={
            "lang": "py",
            "task": TASK,
            "id": task_id,
            "root_id": task_id,
            "argsrepr": repr((job_id,)),
            "retries": 0,
        },
        correlation_id=task_id,
        retry=False,
    )
