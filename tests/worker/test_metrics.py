"""What a worker counts while it works, as Prometheus would read it from its port."""

from __future__ import annotations

import logging
import urllib.request

import psycopg
import pytest
from prometheus_client import generate_latest

from core.logs import fields_of
from tests.worker.conftest import Workshop
from worker import metrics
from worker.embedded.servers import free_port
from worker.supervisor.supervisor import work


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_jobs_blocks_its_wait_and_its_end_are_counted_and_its_lines_carry_its_ids(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    before = value("qe_worker_block_seconds_count"), value("qe_worker_claim_wait_seconds_count")
    succeeded = value("qe_worker_attempts_total", status="succeeded")
    seen: list[dict[str, object]] = []
    logger = logging.getLogger("worker.supervisor.run_attempt")
    watcher = logging.Filter()
    watcher.filter = lambda record: bool(seen.append(fields_of(record))) or True  # type: ignore[method-assign]
    logger.addFilter(watcher)
    try:
        with caplog.at_level(logging.INFO, "worker.supervisor.run_attempt"):
            job_id = workshop.add_job()
            work(workshop.context("w1"))
    finally:
        logger.removeFilter(watcher)
    assert value("qe_worker_block_seconds_count") - before[0] == 4
    assert value("qe_worker_claim_wait_seconds_count") - before[1] == 1
    assert value("qe_worker_attempts_total", status="succeeded") - succeeded == 1
    assert value("qe_worker_busy") == 0
    assert seen
    assert all((line["job_id"], line["attempt"], line["worker"]) == (job_id, 1, "w1") for line in seen)


def test_a_write_that_the_ledger_refuses_is_counted_with_the_lost_lease(workshop: Workshop) -> None:
    before = value("qe_worker_leases_lost_total"), value("qe_worker_attempts_total", status="lost")
    job_id = workshop.add_job()
    with psycopg.connect(workshop.settings.database_url or "", autocommit=True) as other:
        other.execute(
            b"""CREATE FUNCTION steal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                UPDATE jobs SET attempt = attempt + 1 WHERE id = NEW.job_id; RETURN NEW; END $$"""
        )
        other.execute(b"CREATE TRIGGER steal AFTER INSERT ON layers FOR EACH ROW EXECUTE FUNCTION steal()")
        work(workshop.context())
        other.execute(b"DROP TRIGGER steal ON layers; DROP FUNCTION steal")
    assert workshop.job(job_id)["attempt"] == 2
    assert value("qe_worker_leases_lost_total") - before[0] == 1
    assert value("qe_worker_attempts_total", status="lost") - before[1] == 1


def test_the_metrics_are_served_on_the_port_and_a_taken_port_stops_nothing() -> None:
    port = free_port()
    metrics.serve_metrics(port, host="127.0.0.1")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert "qe_worker_block_seconds_bucket" in response.read().decode()
    metrics.serve_metrics(port, host="127.0.0.1")


def test_gpu_memory_is_told_in_bytes_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ask_gpus", lambda query, uuid: ["0, 1024, 81559", "1, [N/A], 81559"])
    text = generate_latest(metrics.REGISTRY).decode()
    assert 'qe_worker_gpu_memory_bytes{gpu="0",kind="used"} 1.073741824e+09' in text
    assert 'gpu="1",kind="used"' not in text
