"""Rate limit: one token bucket for each key, in the memory of this process.

Not in Redis: it costs a request nothing and works without a broker. With a second API process each key has a second
bucket. See decision 0016.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_SECONDS = 60
MOST_KEYS = 10_000
"""Beyond it the least recently used bucket is dropped. Its owner starts again with a full one."""


@dataclass(frozen=True)
class Decision:
    allowed: bool
    quota: int
    remaining: int
    retry_after: int
    """Seconds until a token is available; 0 when the request was allowed."""
    full_after: int
    """Seconds until the bucket is full again."""

    @property
    def headers(self) -> dict[str, str]:
        """``RateLimit`` and ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers, 10)."""
        fields = {
            "RateLimit-Policy": f'"requests";q={self.quota};w={WINDOW_SECONDS}',
            "RateLimit": f'"requests";r={self.remaining};t={self.full_after}',
        }
        return fields if self.allowed else {**fields, "Retry-After": str(self.retry_after)}


class TokenBuckets:
    """Allows a burst of ``per_minute`` requests, and as many in each further minute."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota = per_minute
        self._rate = per_minute / WINDOW_SECONDS
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> Decision:
        now = self._clock()
        tokens, since = self._buckets.pop(key, (float(self._quota), now))
        tokens = min(float(self._quota), tokens + (now - since) * self._rate)
        allowed = tokens >= 1
        tokens -= allowed
        self._buckets[key] = (tokens, now)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        return Decision(
            allowed=allowed,
            quota=self._quota,
            remaining=int(tokens),
            retry_after=0 if allowed else max(1, math.ceil((1 - tokens) / self._rate)),
            full_after=math.ceil((self._quota - tokens) / self._rate),
        )
