"""The doorbell: a Celery message that carries a job id and nothing else.

PostgreSQL decides what runs. The message only spares a worker the wait, so it may be lost, doubled or late without
harm. The API sends it with kombu in Celery's message format, so that it needs neither Celery nor the worker's code.
"""

from __future__ import annotations

import uuid
from typing import Protocol

from kombu import Connection, Producer

QUEUE = "qe.jobs"
TASK = "worker.tasks.ring"
MOST_WAITING = 1000
"""Bells in the queue beyond which another one tells nobody anything: without a worker, the keeper would go on ringing
for every waiting job each minute, for days (2,000 jobs: 1.7 GB a day)."""
AT_ONCE = 4
"""Connections of one process to the broker; who comes when all are in use waits."""


class Bell(Protocol):
    def ring(self, job_id: str) -> None:
        """Tell some worker that ``job_id`` waits. Raises when the broker is unreachable; the keeper rings again."""


class RedisBell:
    """Rings through Redis, from any thread. Connections are kept: making one costs more than ringing (6 ms of CPU)."""

    def __init__(self, redis_url: str, *, timeout: float = 2.0) -> None:
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        self._connections = Connection(redis_url, transport_options=options, connect_timeout=timeout).Pool(AT_ONCE)

    def ring(self, job_id: str) -> None:
        with self._connections.acquire(block=True) as connection:
            try:
                _ring(connection, job_id)
            except BaseException:
                connection.collect()  # the next one begins anew, whatever state this one is in
                raise


def _ring(connection: Connection, job_id: str) -> None:
    channel = connection.default_channel
    if channel.client.llen(QUEUE) >= MOST_WAITING:
        return
    task_id = str(uuid.uuid4())
    Producer(channel, auto_declare=False).publish(
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
