"""One trace for a job, whoever works at it and however that ends. The runner is the stand-in."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.settings import Settings
from core.tracing import Tracing, open_tracing
from tests.collector import Collector, Received, running_collector
from tests.services import wait_until
from tests.worker.conftest import Workshop
from tests.worker.test_celery_worker import celery_worker
from worker.keeper import loop as keeper
from worker.machine.context import WorkerContext
from worker.runner.protocol import BlockLine
from worker.supervisor.spans import RunnerSpans
from worker.supervisor.supervisor import work

TRACE, REQUEST = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with running_collector() as collector:
        for name, value in collector.environment.items():
            monkeypatch.setenv(name, value)
        yield collector


@pytest.fixture
def tracing(collector: Collector) -> Iterator[Tracing]:
    tracing = open_tracing(Settings(tracing=True), "worker")
    yield tracing
    tracing.close()


def requested(workshop: Workshop, job_id: str) -> str:
    """As if a traced request had made the job."""
    with workshop.connect() as connection:
        connection.execute(
            "UPDATE jobs SET trace_context = jsonb_build_object('traceparent', %s::text) WHERE id = %s",
            (f"00-{TRACE}-{REQUEST}-01", job_id),
        )
    return job_id


def traced(context: WorkerContext, tracing: Tracing) -> WorkerContext:
    return WorkerContext(**{**vars(context), "tracing": tracing})


def blocks_below(collector: Collector, start: Received) -> list[int]:
    return [span.attributes["qe.block"] for span in collector.named("block") if span.parent == start.id]


def hang_together(collector: Collector, *roots: str) -> bool:
    """Every span that was sent has a parent that was."""
    known = {span.id for span in collector.spans} | set(roots)
    return all(span.parent in known for span in list(collector.spans))


def test_the_trace_of_a_running_job_hangs_together(workshop: Workshop, collector: Collector, tracing: Tracing) -> None:
    requested(workshop, workshop.add_job())
    workshop.direct("hold-2")
    with workshop.working(traced(workshop.context(), tracing)):
        workshop.wait_for("at-2")
        wait_until(lambda: len(collector.named("block")) == 2, what="the spans of two blocks")
        start = collector.one("attempt started")
        assert (start.trace, start.parent, start.attributes["qe.attempt"]) == (TRACE, REQUEST, 1)
        assert {span.parent for span in collector.named("block")} == {start.id}
        assert hang_together(collector, REQUEST)
        assert collector.named("attempt") == []
        workshop.release("hold-2")
    assert collector.one("attempt").parent == start.id
    collector.one("attempt started")


def test_the_start_of_an_attempt_waits_for_no_batch(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    tracing = open_tracing(Settings(tracing=True), "worker")
    began = tracing.attempt("job_x", 1, {}, carrier=None)
    start = collector.one("attempt started")
    tracing.attempt("job_x", 1, {}, carrier=None, began=1_000_000).end()  # by a keeper
    tracing.close()
    lost = collector.one("attempt")
    assert (lost.trace, lost.parent, lost.began) == (start.trace, "", 1_000_000)
    assert began.ids["trace_id"] == start.trace
    collector.one("attempt started")


def test_attempts_join_the_requests_trace_and_one_whose_worker_was_killed_is_ended_by_the_keeper(
    workshop: Workshop, redis_url: str, collector: Collector, tracing: Tracing
) -> None:
    job_id = requested(workshop, workshop.add_job())
    workshop.direct("hold-2")
    with celery_worker(workshop, redis_url) as process:
        workshop.wait_for("at-2")
        wait_until(lambda: len(collector.named("block")) == 2, what="the spans of two blocks")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    workshop.release("hold-2")
    assert collector.named("attempt") == []
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 minute'")
        keeper.reap(connection, workshop.notified.append, grace=0, budget=3, tracing=tracing)
    work(traced(workshop.context("two"), tracing))
    assert workshop.job(job_id)["status"] == "succeeded"

    lost, second = collector.one("attempt", attempt=1), collector.one("attempt", attempt=2)
    assert {span.trace for span in collector.spans} == {TRACE}
    assert [span.parent for span in collector.named("attempt started")] == [REQUEST, REQUEST]
    starts = {span.attributes["qe.attempt"]: span for span in collector.named("attempt started")}
    assert (lost.parent, second.parent) == (REQUEST, starts[2].id)
    assert lost.failed == "worker one@test was not heard of"
    assert lost.attributes["qe.worker"] == "one@test"
    assert lost.began < lost.ended < second.began
    assert [blocks_below(collector, starts[number]) for number in (1, 2)] == [[0, 1], [2, 3]]
    assert second.failed is None
    assert second.attributes["qe.resumed_from_block"] == 2
    assert second.attributes["qe.job.id"] == job_id
    assert (second.attributes["qe.model"], second.attributes["qe.scheme"]) == ("local/tiny", "W4A6")
    assert {"fetch", "calibrating", "fitting", "packing", "publish"} <= {s.name for s in collector.beside(second)}
    assert hang_together(collector, REQUEST)


def test_a_job_that_no_traced_request_made_is_one_trace_too(
    workshop: Workshop, collector: Collector, tracing: Tracing
) -> None:
    workshop.add_job()
    workshop.direct("crash-2")
    work(traced(workshop.context(), tracing))
    first, second = collector.one("attempt", attempt=1), collector.one("attempt", attempt=2)
    assert first.trace == second.trace
    assert [span.parent for span in collector.named("attempt started")] == ["", ""]
    assert first.parent != second.parent
    assert hang_together(collector, "")
    assert "was killed by SIGKILL" in (first.failed or "")
    assert first.attributes["qe.job.status"] == "queued"


def test_a_failed_job_says_why(workshop: Workshop, collector: Collector, tracing: Tracing) -> None:
    (workshop.stage / "fail").write_text("invalid_model the weights are not there")
    workshop.add_job()
    work(traced(workshop.context(), tracing))
    attempt = collector.one("attempt")
    assert (attempt.failed, attempt.attributes["error.type"]) == ("the weights are not there", "invalid_model")


def test_a_worker_that_lost_its_job_leaves_the_attempt_to_the_keeper(
    workshop: Workshop, collector: Collector, tracing: Tracing
) -> None:
    workshop.add_job()
    workshop.direct("hold-1")
    with workshop.working(traced(workshop.context(), tracing)), workshop.connect() as connection:
        workshop.wait_for("at-1")
        connection.execute("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 minute'")
        wait_until(lambda: _reaped(workshop, tracing), what="the keeper to take the job")
        workshop.direct("crash-1")
        workshop.release("hold-1")
    assert [span.attributes["qe.attempt"] for span in collector.named("attempt")].count(1) <= 1
    collector.one("attempt", attempt=1)


def _reaped(workshop: Workshop, tracing: Tracing) -> bool:
    """Between two heartbeats, each of which makes the lease good again."""
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 minute' WHERE attempt = 1")
        return bool(keeper.reap(connection, workshop.notified.append, grace=0, budget=3, tracing=tracing))


def test_a_collector_that_is_away_costs_a_job_nothing(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = open_tracing(Settings(tracing=True), "worker")
    job_id = workshop.add_job()
    work(traced(workshop.context(), tracing))
    assert workshop.job(job_id)["status"] == "succeeded"
    tracing.close()


def test_the_parts_of_a_block_lie_where_the_runner_timed_them(collector: Collector, tracing: Tracing) -> None:
    line = BlockLine(
        block=3, blocks=8, seconds=10, seconds_by_phase={"observe": 6, "fit": 3}, groups=[], files=[], at=1_000_010
    )
    RunnerSpans(tracing.request("GET", {})).block(line, 0.125).end(1_000_012)
    block = collector.one("block")
    assert (block.began, block.ended, block.attributes["qe.error"]) == (1_000_000, 1_000_012, 0.125)
    parts = [(span.name, span.began, span.ended) for span in collector.below(block)]
    assert parts == [("observe", 1_000_000, 1_000_006), ("fit", 1_000_006, 1_000_009)]


def test_the_runner_learns_nothing_of_the_collector(
    workshop: Workshop, collector: Collector, tracing: Tracing, tmp_path: Path
) -> None:
    workshop.direct("environment")
    workshop.add_job()
    work(traced(workshop.context(), tracing))
    seen = (workshop.stage / "environment").read_text()
    assert collector.url in os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert "OTEL_" not in seen
    assert collector.url not in seen


def test_a_worker_killed_before_it_could_send_a_thing_leaves_no_span_in_the_air(
    collector: Collector, tracing: Tracing
) -> None:
    """Nobody has heard of the start of its attempt."""
    carrier = {"traceparent": f"00-{TRACE}-{REQUEST}-01"}
    tracing.attempt("job_x", 1, {}, carrier=carrier, began=1_000_000).end()  # by the keeper
    lost = collector.one("attempt")
    assert (lost.trace, lost.parent) == (TRACE, REQUEST)
