"""Request ids, metrics and the access log, in one ASGI middleware around everything else."""

from __future__ import annotations

import logging
import re
import time
import uuid

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import BODY_TOO_LARGE, Problem, problem_response, unhandled

HEADERS = "qe.headers"
"""In the scope of a request: headers for its response, whoever makes it."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger("app.access")


class Telemetry:
    """The metrics of one application. A registry of its own, so that two applications in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self.requests = Counter("qe_http_requests_total", "Answered requests.", labels, registry=self.registry)
        self.seconds = Histogram(
            "qe_http_request_seconds", "Until the end of the response.", ["method", "route"], registry=self.registry
        )
        self.open = Gauge("qe_http_requests_open", "Requests being answered.", registry=self.registry)
        self.jobs = Gauge("qe_jobs", "Jobs by status.", ["status"], registry=self.registry)
        self.oldest_queued = Gauge(
            "qe_oldest_queued_seconds",
            "Age of the job that has waited longest; 0 when none waits.",
            registry=self.registry,
        )
        self.workers = Gauge("qe_workers_alive", "Workers heard of within one lease.", registry=self.registry)


class TelemetryMiddleware:
    """Gives every request an id, counts it, and answers what nobody else handled with a problem."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        scope["request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

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
            with self._telemetry.open.track_inprogress():
                try:
                    await self._app(scope, receive, send_with_id)
                except Exception as error:
                    if status:
                        raise  # half a response is out: only a broken connection is honest now
                    response = unhandled(Request(scope), error)
                    await response(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._telemetry.requests.labels(scope["method"], route, str(status)).inc()
        self._telemetry.seconds.labels(scope["method"], route).observe(seconds)
        log.info("%s %s %s %.0f ms %s", scope["method"], route, status, seconds * 1000, scope["request_id"])


class BodyLimitMiddleware:
    """Refuses a body over the limit of its path: at once when it says its length, else as soon as it passes it.

    A path in ``limits`` that ends with ``*`` stands for all that begin like it.
    """

    def __init__(self, app: ASGIApp, limit: int, limits: dict[str, int]) -> None:
        self._app = app
        self._limit = limit
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(f"{scope['method']} {scope['path']}")
        detail = f"at most {limit} bytes are accepted here"
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > limit:
            # The unread body would be taken for the next request, so the connection ends with this answer.
            response = problem_response(Request(scope), BODY_TOO_LARGE, detail, headers={"Connection": "close"})
            await response(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise Problem(BODY_TOO_LARGE, detail, headers={"Connection": "close"})
            return message

        await self._app(scope, limited, send)

    def _limit_of(self, operation: str) -> int:
        found = self._limits.get(operation)
        if found is not None:
            return found
        for path, limit in self._limits.items():
            if path.endswith("*") and operation.startswith(path[:-1]):
                return limit
        return self._limit
