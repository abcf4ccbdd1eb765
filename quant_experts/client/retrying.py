"""When a call is tried again, and after how long. Decisions only: who sleeps is the caller."""

from __future__ import annotations

import random
from dataclasses import dataclass
from urllib.request import getproxies

import httpx

from quant_experts.client.errors import ApiError, ConnectionFailed

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Failures after which the service cannot have carried out the request."""
TRANSIENT = frozenset({429, 502, 503, 504})
REFUSED_UNDONE = frozenset({429})
"""Answers that say that nothing was done."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter: between 0 and ``first * 2**n`` seconds, at most ``longest``."""

    retries: int = 5
    first: float = 0.5
    longest: float = 20.0
    patience: float = 120.0
    """A ``Retry-After`` beyond this is not waited for: the caller gets the error, which carries it."""

    def pause(self, failure: Exception, *, attempt: int, repeatable: bool) -> float | None:
        """Seconds to wait before attempt ``attempt + 1``; None when ``failure`` is to be raised.

        ``repeatable``: carrying the request out twice does no harm.
        """
        if attempt >= self.retries or not _worth_it(failure, repeatable):
            return None
        asked = failure.retry_after if isinstance(failure, ApiError) else None
        if asked is not None:
            return asked if asked <= self.patience else None
        return self.backoff(attempt)

    def backoff(self, attempt: int) -> float:
        return random.uniform(0, min(self.longest, self.first * 2**attempt))  # noqa: S311 -- spreads load


def transient(failure: ApiError) -> bool:
    """Such an answer says nothing about the request itself."""
    return failure.status in TRANSIENT


def _worth_it(failure: Exception, repeatable: bool) -> bool:
    if isinstance(failure, httpx.TransportError):
        return repeatable or isinstance(failure, NOT_SENT)
    if not isinstance(failure, ApiError):
        return False
    if failure.type == "idempotency-in-progress":
        return True
    return transient(failure) if repeatable else failure.status in REFUSED_UNDONE


def unreachable(failure: httpx.RequestError, request: str) -> ConnectionFailed:
    reason = str(failure) or type(failure).__name__
    through = " A proxy is set in the environment: does it lead there?" if getproxies() else ""
    return ConnectionFailed(f"{request}: {reason}; is the service running there?{through}")
