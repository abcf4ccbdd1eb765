"""Wake-ups of worker processes."""

from __future__ import annotations

import billiard
import redis

from core.settings import Settings
from core.wakeup import QUEUE
from worker.notify import notify_workers


def test_a_child_of_the_pool_notifies_although_its_parent_has_before(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url)
    notify_workers(settings, "parent")
    child = billiard.Process(target=notify_workers, args=(settings, "child"))
    child.start()
    child.join(60)
    notify_workers(settings, "parent")
    assert redis.Redis.from_url(redis_url).llen(QUEUE) == 3
