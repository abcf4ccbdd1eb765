"""Errors of the client. An error response of the service is an ``ApiError`` with its problem details."""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass
from typing import Any

import httpx

from quant_experts.errors import QuantExpertsError


class ClientError(QuantExpertsError):
    """Base of the errors of this package."""

    code = "client_error"


class MisconfiguredClient(ClientError):
    """No API key, or a setting that cannot be read."""

    code = "misconfigured_client"


class ConnectionFailed(ClientError):
    """The service was not reached, or the connection broke, on every retry."""

    code = "connection_failed"


class DigestMismatch(ClientError):
    """A downloaded file has the wrong digest, twice in a row."""

    code = "digest_mismatch"


class Stopped(ClientError):
    """Another part of the same upload or download failed, or the caller was interrupted."""


@dataclass(frozen=True)
class ProblemItem:
    """Where in the request: ``pointer`` is a JSON pointer into the body, or ``/query/…``, ``/header/…``."""

    pointer: str
    detail: str
    row: int | None = None
    """Row of an uploaded dataset, counted from 1; the first of several."""
    count: int = 1
    """How many errors of this kind there are."""


class ApiError(ClientError):
    """The service refused or failed a request (RFC 9457)."""

    code = "api_error"

    def __init__(
        self,
        *,
        status: int,
        type: str,  # noqa: A002 -- the name that RFC 9457 gives it
        title: str,
        detail: str,
        errors: tuple[ProblemItem, ...],
        request_id: str | None,
        retryable: bool,
        retry_after: float | None,
    ) -> None:
        self.status = status
        self.type = type
        """The stable slug, for example ``dataset-not-found``."""
        self.title = title
        self.detail = detail
        self.errors = errors
        self.request_id = request_id
        self.retryable = retryable
        """The same request may succeed later."""
        self.retry_after = retry_after
        """Seconds of the response's ``Retry-After``."""
        more = "".join(f"; {_located(item)}" for item in errors if item.detail not in detail)
        suffix = f" (request {request_id})" if request_id else ""
        super().__init__(f"{detail}{more}{suffix}")

    @property
    def pointer(self) -> str | None:
        """The first pointer of ``errors``."""
        return self.errors[0].pointer if self.errors else None


class Unauthenticated(ApiError):
    """401: no key, or one that is unknown, expired or revoked."""

    code = "unauthenticated"


class Forbidden(ApiError):
    """403: the key lacks a scope."""

    code = "forbidden"


class NotFound(ApiError):
    """404: no such object, or another tenant's."""

    code = "not_found"


class Conflict(ApiError):
    """409, 412: the state of the object does not allow it."""

    code = "conflict"


class InvalidRequest(ApiError):
    """Any other 4xx; ``errors`` says where."""

    code = "invalid_request"


class RateLimited(ApiError):
    """429, after all retries."""

    code = "rate_limited"


class ServiceFault(ApiError):
    """5xx."""

    code = "service_fault"


class Unavailable(ServiceFault):
    """502, 503, 504: the service, or a proxy before it, is unavailable."""

    code = "unavailable"


LOST_ANSWER = (ConnectionFailed, Unavailable)
"""Errors after which the client cannot know whether the request was carried out."""

_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
_BY_CLASS = {4: InvalidRequest, 5: ServiceFault}


def error_of(response: httpx.Response) -> ApiError | None:
    """The error that a response with a read body stands for; None for a success. The API never redirects: what does is
    before it, as a server that answers http with https."""
    if response.is_success:
        return None
    problem = _problem(response)
    kind = _BY_STATUS.get(response.status_code) or _BY_CLASS.get(response.status_code // 100, ApiError)
    detail = problem.get("detail") or f"HTTP {response.status_code} {response.reason_phrase} from {response.url}"
    if "location" in response.headers:
        detail = f"{detail}, which leads to {response.headers['location']}: set QE_URL to where the service is"
    return kind(
        status=response.status_code,
        type=str(problem.get("type", "")).removeprefix("/problems/") or "about:blank",
        title=str(problem.get("title", response.reason_phrase)),
        detail=str(detail),
        errors=tuple(_item(entry) for entry in problem.get("errors") or () if isinstance(entry, dict)),
        request_id=response.headers.get("x-request-id"),
        retryable=problem.get("retryable") is True,
        retry_after=_retry_after(response.headers.get("retry-after")),
    )


def _problem(response: httpx.Response) -> dict[str, Any]:
    """The body of a problem; None for another body, as of a proxy."""
    if response.headers.get("content-type", "").split(";")[0] != "application/problem+json":
        return {}
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _item(entry: dict[str, Any]) -> ProblemItem:
    row, count = entry.get("row"), entry.get("count")
    return ProblemItem(
        pointer=str(entry.get("pointer", "")),
        detail=str(entry.get("detail", "")),
        row=row if isinstance(row, int) else None,
        count=count if isinstance(count, int) else 1,
    )


def _located(item: ProblemItem) -> str:
    # The detail of a row's error names the row.
    return item.detail if item.row is not None else f"{item.pointer}: {item.detail}"


def _retry_after(value: str | None) -> float | None:
    """Seconds, or an HTTP date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
