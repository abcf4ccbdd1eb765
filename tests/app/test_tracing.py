"""Spans of requests: off they cost nothing, a client's trace is taken up, a collector that is away harms nobody."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from core.logs import fields_of
from core.settings import Settings
from tests.app.conftest import Api, job_body, ok, started
from tests.collector import Collector, running_collector
from tests.services import wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with running_collector() as collector:
        for name, value in collector.environment.items():
            monkeypatch.setenv(name, value)
        yield collector


@pytest.fixture
def traced(settings: Settings) -> Settings:
    return settings.model_copy(update={"tracing": True})


def context_of(api: Api, job_id: str) -> dict[str, str] | None:
    return api.execute("SELECT trace_context FROM jobs WHERE id = %s", [job_id])[0][0]


async def test_a_clients_trace_goes_on_in_the_request_and_is_kept_with_the_job(
    traced: Settings, collector: Collector
) -> None:
    async with started(traced) as api:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=value"}
        job = ok(await api.client.post("/v1/jobs", json=job_body(), headers=headers), 201)
        kept = context_of(api, job["id"])
    span = collector.one("POST /v1/jobs")
    assert (span.trace, span.parent) == (TRACE, PARENT)
    assert kept == {"traceparent": f"00-{TRACE}-{span.id}-01", "tracestate": "vendor=value"}
    assert span.attributes["http.route"] == "/v1/jobs"
    assert span.attributes["http.response.status_code"] == 201
    assert span.attributes["qe.job.id"] == job["id"]
    assert span.kind == 2  # SERVER
    assert collector.headers[0]["x-team"] == "tests"


async def test_a_client_that_does_not_sample_is_not_sampled_here_either(traced: Settings, collector: Collector) -> None:
    async with started(traced) as api:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        job = ok(await api.client.post("/v1/jobs", json=job_body(), headers=headers), 201)
        assert (context_of(api, job["id"]) or {})["traceparent"].endswith("-00")
        ok(await api.client.get("/v1/jobs"))
    collector.one("GET /v1/jobs")
    assert [span.trace for span in collector.spans].count(TRACE) == 0


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
async def test_a_broken_header_begins_a_trace_of_its_own(traced: Settings, collector: Collector, header: str) -> None:
    async with started(traced) as api:
        ok(await api.client.get("/v1/jobs", headers={"traceparent": header}))
    span = collector.one("GET /v1/jobs")
    assert span.parent == ""
    assert span.trace not in (TRACE, "0" * 32)


async def test_log_lines_carry_the_trace_and_a_retry_is_linked_to_the_first_request(
    traced: Settings, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[dict[str, object]] = []
    watcher = logging.Filter()
    watcher.filter = lambda record: bool(lines.append(fields_of(record))) or True  # type: ignore[method-assign]
    logger = logging.getLogger("app.jobs.creation")
    logger.addFilter(watcher)
    try:
        async with started(traced) as api:
            with caplog.at_level(logging.INFO):
                job = await api.create_job()
            ok(await api.client.post(f"/v1/jobs/{job['id']}/cancel"))
            ok(await api.client.post(f"/v1/jobs/{job['id']}/retry"))
    finally:
        logger.removeFilter(watcher)
    first, retry = collector.one("POST /v1/jobs"), collector.one("POST /v1/jobs/{job_id}/retry")
    assert [line["trace_id"] for line in lines if line["job_id"] == job["id"]] == [first.trace]
    assert retry.links == [(first.trace, first.id)]
    assert retry.trace != first.trace


async def test_faults_are_marked_and_what_machines_ask_every_few_seconds_is_left_out(
    traced: Settings, collector: Collector
) -> None:
    async with started(traced) as api:
        for path in ("/healthz", "/readyz", "/metrics", "/v1/jobs/nothing", "/no/such/page"):
            await api.client.get(path)
        api.execute("ALTER TABLE jobs RENAME TO jobs_away")
        try:
            await api.client.get("/v1/jobs")
        finally:
            api.execute("ALTER TABLE jobs_away RENAME TO jobs")
    fault = collector.one("GET /v1/jobs")
    assert fault.failed
    assert {span.name for span in collector.spans} == {"GET /v1/jobs/{job_id}", "GET", "GET /v1/jobs"}
    assert collector.one("GET /v1/jobs/{job_id}").failed is None


@pytest.mark.parametrize("listens", [False, True], ids=["refused", "silent"])
async def test_a_collector_that_is_away_changes_no_answer_and_holds_nothing_up(
    traced: Settings, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen(16)  # takes the connection and says nothing
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        async with started(traced) as api:
            for _ in range(3):
                await api.create_job()
            assert len(ok(await api.client.get("/v1/jobs"))["data"]) == 3
            began = time.monotonic()
        assert time.monotonic() - began < 8  # ours are two; a request's would be ten, the SDK's thirty


async def test_without_the_setting_nothing_is_sent_or_kept_or_loaded(api: Api) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    job = ok(await api.client.post("/v1/jobs", json=job_body(), headers=headers), 201)
    assert context_of(api, job["id"]) is None
    exporter = "opentelemetry.exporter.otlp.proto.http"  # the SDK itself is loaded by redis-py, where it is installed
    program = f"import sys, app.main, worker.queue.celery_app, worker.keeper.loop; print({exporter!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


async def test_the_setting_without_the_packages_says_what_to_install(
    traced: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "core.tracing.otlp", raising=False)
    with pytest.raises(ValueError, match=r"QE_TRACING is set, but .* pip install 'quant-experts\[tracing\]'"):
        async with started(traced):
            pass


async def test_names_of_the_service_come_from_the_standard_variables(
    traced: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    async with started(traced) as api:
        ok(await api.client.get("/v1/jobs"))
    wait_until(lambda: collector.spans, what="a span")
    assert collector.spans[0].service == "ours"
