"""Ringing without caring whether anybody hears it: a lost bell costs a minute, never a job."""

from __future__ import annotations

import functools
import logging
import os

from core.settings import Settings
from core.wakeup import RedisBell
from worker import metrics

logger = logging.getLogger(__name__)


def ring_quietly(settings: Settings, job_id: str) -> bool:
    """Ring for ``job_id``; when Redis does not answer, say so, also in the log: the keeper rings again."""
    try:
        _bell(settings.redis_url or "", os.getpid()).ring(job_id)
        return True
    except Exception as error:  # noqa: BLE001 -- kombu's transports raise errors of many libraries
        metrics.BELLS_LOST.inc()
        logger.warning("the bell for %s was not rung: %s", job_id, error)
        return False


@functools.cache
def _bell(redis_url: str, process: int) -> RedisBell:
    """Of this process: Celery's pool forks, and kombu closes in the child what the parent had open."""
    return RedisBell(redis_url)
