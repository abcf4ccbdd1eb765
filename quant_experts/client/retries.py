"""The retry policy: whether a request is sent again, and after which pause. It does not sleep."""

from __future__ import annotations

import random
from dataclasses import dataclass
from urllib.request import getproxies

import httpx

from quant_experts.client.errors import ApiError, ConnectionFailed

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Errors that exclude that the service carried out the request."""
TRANSIENT = frozenset({429, 502, 503, 504})
REFUSED_UNDONE = frozenset({429})
"""Statuses that say that nothing was done."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter: between 0 and ``first * 2**n`` seconds, at most ``longest``."""

    retries: int = 5
    first: float = 0.5
    longest: float = 20.0
    patience: float = 120.0
    """Longest ``Retry-After`` in seconds that is waited for; beyond it the error is raised."""

    def pause(self, failure: Exception, *, attempt: int, repeatable: bool) -> float | None:
        """Seconds to wait before attempt ``attempt + 1``; None when ``failure`` is raised instead.

        ``repeatable``: the request is idempotent.
        """
        if attempt >= self.retries or not _worth_it(failure, repeatable):
            return None
        retry_after = failure.retry_after if isinstance(failure, ApiError) else None
        if retry_after is not None:
            return retry_after if retry_after <= self.patience else None
        return self.backoff(attempt)

    def backoff(self, attempt: int) -> float:
        return random.uniform(0, min(self.longest, self.first * 2**attempt))  # noqa: S311 -- spreads load


def transient(failure: ApiError) -> bool:
    """Whether the status is unrelated to the request itself."""
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
