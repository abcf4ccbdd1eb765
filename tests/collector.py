"""What stands for an OpenTelemetry collector: an HTTP server that decodes what OTLP exporters send, and keeps it."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.services import wait_until

PATH = "/v1/traces"


@dataclass(frozen=True)
class Received:
    """One span. Ids in hexadecimal, times in Unix seconds."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    began: float
    ended: float
    failed: str | None
    """What it says when its status is an error."""
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    """Trace and span."""
    service: str


@dataclass
class Collector:
    url: str = ""
    spans: list[Received] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """For a process whose spans are to arrive here without delay."""
        return {
            "QE_TRACING": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-team=tests",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def named(self, name: str, **attributes: Any) -> list[Received]:
        """In the order of their beginnings. ``job_id="…"`` is the attribute ``qe.job.id``."""
        wanted = {f"qe.{key.replace('_', '.')}": value for key, value in attributes.items()}
        spans = (span for span in list(self.spans) if span.name == name)
        return sorted((s for s in spans if wanted.items() <= s.attributes.items()), key=lambda span: span.began)

    def one(self, name: str, **attributes: Any) -> Received:
        """Waits for it, and knows that there is no other."""
        wait_until(lambda: self.named(name, **attributes), what=f"a span {name} {attributes}")
        (span,) = self.named(name, **attributes)
        return span

    def below(self, span: Received) -> list[Received]:
        return sorted((each for each in list(self.spans) if each.parent == span.id), key=lambda each: each.began)

    def beside(self, span: Received) -> list[Received]:
        """Those with the same parent, itself among them."""
        return sorted((each for each in list(self.spans) if each.parent == span.parent), key=lambda each: each.began)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource.resource.attributes).get("service.name", "")
            for scope in resource.scope_spans:
                self.spans.extend(_received(span, service) for span in scope.spans)


def _received(span: Any, service: str) -> Received:
    return Received(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        began=span.start_time_unix_nano / 1e9,
        ended=span.end_time_unix_nano / 1e9,
        failed=span.status.message if span.status.code == 2 else None,
        attributes=_values(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        service=service,
    )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextlib.contextmanager
def running_collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == PATH
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="collector", daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
