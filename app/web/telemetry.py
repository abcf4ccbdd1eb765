"""Request ids, metrics and the access log, in one ASGI middleware around everything else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.error_handlers import problem_response, unhandled
from app.web.problems import BODY_TOO_LARGE, MALFORMED_REQUEST, Problem
from core import tracing
from core.logs import EXTRA, log_context

HEADERS = "qe.headers"
"""Key in the scope of a request: headers for its response."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "other"
"""Label for unknown methods: a time series for each of them would fill the memory."""
NAMED_IN_LOGS = ("job_id", "dataset_id", "key_id", "webhook_id")
"""Path parameters that the access log records."""
NOT_TRACED = ("/healthz", "/readyz", "/metrics")
"""Probes call them every few seconds."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 1024 * 1024
log = logging.getLogger("app.access")


class Telemetry:
    """The metrics of one application, in a registry of its own: two applications in one process do not mix."""

    tracing: tracing.Tracing = tracing.OFF
    """Set when the application starts."""

    ledger_read_at = float("-inf")
    """When the figures of the ledger were last read, on the monotonic clock."""

    def __init__(self) -> None:
        self.ledger_lock = asyncio.Lock()
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self.requests = Counter("qe_http_requests_total", "Answered requests.", labels, registry=self.registry)
        self.seconds = Histogram(
            "qe_http_request_seconds", "Until the end of the response.", ["method", "route"], registry=self.registry
        )
        self.open = Gauge("qe_http_requests_open", "Requests being answered.", registry=self.registry)
        self.jobs = Gauge("qe_jobs", "Jobs that have not ended, by status.", ["status"], registry=self.registry)
        self.oldest_queued = Gauge(
            "qe_oldest_queued_seconds",
            "Age of the job that has waited longest; 0 when none waits.",
            registry=self.registry,
        )
        self.followers = Gauge("qe_event_followers", "Open event streams of this process.", registry=self.registry)
        self.workers = Gauge("qe_workers_alive", "Workers heard of within one lease.", registry=self.registry)
        self.stopped_workers = Gauge(
            "qe_workers_stopped", "Workers that are alive and take no job any more.", registry=self.registry
        )


class TelemetryMiddleware:
    """Gives every request an id, counts it, and turns unhandled exceptions into problems."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client_id = Headers(scope=scope).get("x-request-id", "")
        scope["request_id"] = client_id if REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex
        status = 0
        tracing_here = self._telemetry.tracing if scope["path"] not in NOT_TRACED else tracing.OFF
        span = tracing_here.request(scope["method"], Headers(scope=scope))

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = scope["request_id"]
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.update(scope.get(HEADERS, {}))
            await send(message)

        began = time.perf_counter()
        try:
            with (
                log_context(request_id=scope["request_id"], **span.ids),
                tracing.within(span),
                self._telemetry.open.track_inprogress(),
            ):
                try:
                    await self._app(scope, receive, send_with_id)
                except ClientDisconnect:
                    log.info("%s %s: the client went away", scope["method"], scope["path"][:200])
                except Exception as error:
                    if status:
                        raise  # part of the response was sent: only a broken connection tells the client
                    response = unhandled(Request(scope), error)
                    await response(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - began, span)

    def _record(self, scope: Scope, status: int, seconds: float, span: tracing.Span) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
        self._telemetry.requests.labels(method, route, str(status)).inc()
        self._telemetry.seconds.labels(method, route).observe(seconds)
        fields = {
            "request_id": scope["request_id"],
            "method": scope["method"],
            "route": route,
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
            **{name: value for name, value in scope.get("path_params", {}).items() if name in NAMED_IN_LOGS},
            **span.ids,
        }
        log.info("%s %s %s", scope["method"], route, status, extra={EXTRA: fields})
        _end(span, scope, route, status)


def _end(span: tracing.Span, scope: Scope, route: str, status: int) -> None:
    if route != "unmatched":
        span.rename(f"{scope['method']} {route}")
        span.note({"http.route": route})
    span.note(
        {
            "http.request.method": scope["method"],
            "http.response.status_code": status or None,
            "url.path": scope["path"][:200],
            "qe.request_id": scope["request_id"],
        }
    )
    if status >= 500:
        span.fail(f"status {status}")
    span.end()


class BodyLimitMiddleware:
    """Refuses a body over the limit of its path: at once when its length is announced, else when it exceeds the limit.

    A key of ``limits`` that ends with ``*`` matches every operation with that prefix.
    """

    def __init__(self, app: ASGIApp, limit: int, limits: dict[str, int]) -> None:
        self._app = app
        self._limit = limit
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if {"content-length", "transfer-encoding"} <= set(Headers(scope=scope)):
            # Request smuggling: a proxy that uses the other length sees another next request (RFC 9112, section 6.3).
            detail = "a request has either Content-Length or Transfer-Encoding, and not both"
            refusal = problem_response(Request(scope), MALFORMED_REQUEST, detail, headers={"Connection": "close"})
            await refusal(scope, receive, send)
            return
        limit = self._limit_of(f"{scope['method']} {scope['path']}")
        detail = f"at most {limit} bytes are accepted here"
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limit:
            # The unread body would be parsed as the next request, so the connection ends with this response.
            response = problem_response(Request(scope), BODY_TOO_LARGE, detail, headers={"Connection": "close"})
            await response(scope, receive, lingering(send, receive))
            return
        size = 0
        over = False

        async def limited() -> Message:
            nonlocal size, over
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                over = True
                raise Problem(BODY_TOO_LARGE, detail, headers={"Connection": "close"})
            return message

        linger = lingering(send, receive)

        async def answer(message: Message) -> None:
            await (linger if over else send)(message)

        await self._app(scope, limited, answer)

    def _limit_of(self, operation: str) -> int:
        limit = self._limits.get(operation)
        if limit is not None:
            return limit
        for path, limit in self._limits.items():
            if path.endswith("*") and operation.startswith(path[:-1]):
                return limit
        return self._limit


def lingering(send: Send, receive: Receive) -> Send:
    """A ``send`` that reads the rest of the body for a moment before the connection ends.

    Closing a socket with unread bytes resets the connection, and the reset overtakes the response: the client would see
    a broken connection instead of the problem (seen with 300 kB where 256 kB are allowed).
    """

    async def read_on() -> None:
        remaining = LINGER_BYTES
        while remaining > 0:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return
            remaining -= len(message.get("body", b""))

    async def send_and_linger(message: Message) -> None:
        if message["type"] != "http.response.body" or message.get("more_body", False):
            await send(message)
            return
        await send({**message, "more_body": True})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(read_on(), LINGER_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_and_linger
