"""Bells of worker processes."""

from __future__ import annotations

import billiard
import redis

from core.settings import Settings
from core.wakeup import QUEUE
from worker.notify import ring_quietly


def test_a_child_of_the_pool_rings_although_its_parent_has_rung_before(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url)
    ring_quietly(settings, "parent")
    child = billiard.Process(target=ring_quietly, args=(settings, "child"))
    child.start()
    child.join(60)
    ring_quietly(settings, "parent")
    assert redis.Redis.from_url(redis_url).llen(QUEUE) == 3
