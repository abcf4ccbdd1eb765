"""Spans that are sent to a collector over OTLP/HTTP, from a thread of their own that nothing waits for.

The provider is ours and not the process's global one: what else lives in the process does not begin to trace by itself.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span as Recorded
from opentelemetry.trace import (
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from core.tracing.protocol import Attributes, Carrier, Span

W3C = TraceContextTextMapPropagator()
MOST_TRACESTATE = 512
"""Characters that are passed on; as many as the recommendation asks for at least."""
CLOSE_SECONDS = 2.0
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_next_identifier: ContextVar[str | None] = ContextVar("next_identifier", default=None)
"""What the ids of the next span follow from; None: chance."""


class _Ids(RandomIdGenerator):
    def generate_span_id(self) -> int:
        identifier = _next_identifier.get()
        return super().generate_span_id() if identifier is None else _number(f"span {identifier}", 8)

    def generate_trace_id(self) -> int:
        identifier = _next_identifier.get()
        # All attempts at a job that no traced request made are one trace nevertheless.
        return super().generate_trace_id() if identifier is None else _number(f"trace {identifier.split()[0]}", 16)


def _number(text: str, length: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:length], "big") or 1  # 0 is no id


class OtlpTracing:
    def __init__(self, service: str) -> None:
        self._exporter = OTLPSpanExporter()
        self._provider = TracerProvider(
            resource=_resource(service),
            id_generator=_Ids(),
            shutdown_on_exit=False,  # it would wait for a collector that is away
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("quant-experts", version("quant-experts"))

    def request(self, method: str, headers: Mapping[str, str]) -> Span:
        name = method if method in METHODS else "HTTP"
        span = self._tracer.start_span(name, W3C.extract(headers, Context()), SpanKind.SERVER)
        return OtlpSpan(self._tracer, span)

    def attempt(
        self,
        job_id: str,
        number: int,
        attributes: Attributes,
        *,
        carrier: Mapping[str, str] | None,
        began: float | None = None,
    ) -> Span:
        values, request = _given(attributes), W3C.extract(carrier or {}, Context())
        if began is not None:
            # Below the request: a worker that was killed in its first moments has not sent the start.
            return OtlpSpan(self._tracer, self._named(f"{job_id} {number}", "attempt", request, values, began))
        start = self._named(f"{job_id} {number} started", "attempt started", request, values, began)
        span = self._named(f"{job_id} {number}", "attempt", set_span_in_context(start, Context()), values, began)
        start.end()
        threading.Thread(target=self._provider.force_flush, name="first-span", daemon=True).start()
        return OtlpSpan(self._tracer, span, above_parts=start)

    def _named(
        self,
        identifier: str,
        name: str,
        parent: Context,
        attributes: dict[str, str | int | float | bool],
        began: float | None,
    ) -> Recorded:
        """A span whose id follows from ``identifier``."""
        token = _next_identifier.set(identifier)
        try:
            return self._tracer.start_span(
                name, parent, SpanKind.CONSUMER, attributes=attributes, start_time=_nanoseconds(began)
            )
        finally:
            _next_identifier.reset(token)

    def close(self) -> None:
        """Send what is left; wait two seconds at most, whatever the collector does."""
        shutdown = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        shutdown.start()
        shutdown.join(CLOSE_SECONDS)
        if shutdown.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its waiting between two tries


class OtlpSpan:
    def __init__(self, tracer: Tracer, span: Recorded, *, above_parts: Recorded | None = None) -> None:
        """``above_parts``: the parent of its children, where that is not itself."""
        self._tracer = tracer
        self._span = span
        self._above_parts = above_parts or span

    @property
    def ids(self) -> Mapping[str, str]:
        context = self._span.get_span_context()
        return {"trace_id": format_trace_id(context.trace_id)} if context.is_valid else {}

    @property
    def carrier(self) -> Carrier | None:
        carrier: Carrier = {}
        W3C.inject(carrier, set_span_in_context(self._span, Context()))
        if len(carrier.get("tracestate", "")) > MOST_TRACESTATE:
            del carrier["tracestate"]
        return carrier or None

    def child(self, name: str, attributes: Attributes | None = None, *, began: float | None = None) -> Span:
        span = self._tracer.start_span(
            name,
            set_span_in_context(self._above_parts, Context()),
            attributes=_given(attributes or {}),
            start_time=_nanoseconds(began),
        )
        return OtlpSpan(self._tracer, span)

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(_given(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def link(self, carrier: Mapping[str, str] | None) -> None:
        other = get_current_span(W3C.extract(carrier or {}, Context())).get_span_context()
        if other.is_valid:
            self._span.add_link(other)

    def fail(self, why: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, why[:1000]))

    def end(self, at: float | None = None) -> None:
        self._span.end(_nanoseconds(at))


def _resource(service: str) -> Resource:
    """Who we are, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say it."""
    ours = Resource({SERVICE_NAME: service, SERVICE_VERSION: version("quant-experts")})
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())


def _given(attributes: Attributes) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e9)
