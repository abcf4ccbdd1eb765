"""Wake workers up, best effort: a lost wake-up delays a job by a minute and loses nothing."""

from __future__ import annotations

import functools
import logging
import os

from core.settings import Settings
from core.wakeup import RedisNotifier
from worker import metrics

logger = logging.getLogger(__name__)


def notify_workers(settings: Settings, job_id: str) -> bool:
    """Send a wake-up for ``job_id``. False when Redis does not answer: the log says so, and the keeper repeats it."""
    try:
        _notifier(settings.redis_url or "", os.getpid()).notify(job_id)
        return True
    except Exception as error:  # noqa: BLE001 -- kombu's transports raise errors of many libraries
        metrics.NOTIFICATIONS_LOST.inc()
        logger.warning("workers were not notified of %s: %s", job_id, error)
        return False


@functools.cache
def _notifier(redis_url: str, process: int) -> RedisNotifier:
    """The connection of this process: Celery's pool forks, and kombu closes in the child what the parent had open."""
    return RedisNotifier(redis_url)
