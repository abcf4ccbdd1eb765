"""From ``POST /v1/jobs`` to the loaded checkpoint, over HTTP, on real parts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from demo.loading import generate_in_fresh_process
from demo.rows import make_rows, write_jsonl
from tests.e2e.conftest import OPTIONS, Site


@pytest.fixture(scope="module")
def finished(site: Site, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job with a task of its own that ran to its end, with the events that a client saw while it ran."""
    rows = tmp_path_factory.mktemp("task") / "rows.jsonl"
    write_jsonl(rows, 3, seed=5)
    evaluation = {"dataset": site.service.upload(rows)["id"], "max_new_tokens": 4}
    job = site.service.submit(
        "local/tiny", dataset, "W4A6", OPTIONS, evaluation=evaluation, accept_if={"max_exact_match_drop": 1.0}
    )
    events = list(site.service.events(job["id"]))
    return {"job": site.service.job(job["id"]), "events": events}


def test_the_job_succeeds_and_says_what_it_did(finished: dict[str, Any]) -> None:
    job = finished["job"]
    assert job["status"] == "succeeded", job["error"]
    assert job["error"] is None
    assert job["progress"]["blocks_done"] == job["progress"]["blocks_total"] == 2


def test_its_events_are_dense_and_end_with_success(finished: dict[str, Any]) -> None:
    events = finished["events"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "job.created"
    assert kinds[-1] == "job.succeeded"
    assert kinds.count("job.block") == 2
    phases = [event["data"]["phase"] for event in events if event["type"] == "job.phase"]
    order = ("calibrating", "fitting", "packing", "verifying", "generating", "publishing")
    assert [phase for phase in phases if phase in order] == list(order)


def test_every_block_reports_the_error_of_its_groups(site: Site, finished: dict[str, Any]) -> None:
    response = site.service.client.get(f"/v1/jobs/{finished['job']['id']}/layers")
    layers = response.json()["data"]
    assert [layer["block"] for layer in layers] == [0, 1]
    for layer in layers:
        for group in layer["groups"]:
            assert 0 < group["error"]["routed"] <= group["error"]["shared"] * 1.05 <= group["error"]["base"] * 1.1


def test_the_artifacts_are_what_was_announced_and_load_both_ways(
    site: Site, finished: dict[str, Any], tmp_path: Path
) -> None:
    artifacts = site.service.download(finished["job"]["id"], tmp_path)
    names = {artifact["name"] for artifact in artifacts}
    assert {
        "config.json",
        "quality_report.json",
        "quality_report.html",
        "recipe.json",
        "README.md",
        "SHA256SUMS",
    } <= names
    for artifact in artifacts:
        content = (tmp_path / artifact["name"]).read_bytes()
        assert len(content) == artifact["bytes"]
        assert hashlib.sha256(content).hexdigest() == artifact["sha256"]
    replies, again = (generate_in_fresh_process(tmp_path, site.rows, with_package=flag) for flag in (True, False))
    assert replies[0].tokens
    assert [reply.tokens for reply in replies] == [reply.tokens for reply in again]


def test_a_report_for_people_and_one_for_programs(site: Site, finished: dict[str, Any]) -> None:
    job_id = finished["job"]["id"]
    report = site.service.report(job_id)
    assert report["scheme"] == "W4A6"
    assert report["quality"]["kl"] >= 0
    page = site.service.client.get(f"/v1/jobs/{job_id}/report", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<svg" in page.text


def test_both_models_replied_to_the_rows_of_the_task(site: Site, finished: dict[str, Any]) -> None:
    job = finished["job"]
    assert job["verdict"] == "accepted"
    task, told = site.service.report(job["id"])["evaluation"], job["summary"]["evaluation"]
    expected = [row["messages"][-1]["content"] for row in make_rows(3, seed=5)]
    assert [reply["reference"] for reply in task["replies"]] == expected
    assert [score["name"] for score in told["scores"]] == ["exact_match", "edit_similarity"]
    assert told["scores"] == task["scores"]
    assert {reply["row"] for reply in told["replies"]} == {1, 2, 3}
    page = site.service.client.get(f"/v1/jobs/{job['id']}/report", headers={"Accept": "text/html"}).text
    assert "The task, before and after" in page


def test_the_attempt_is_on_record(site: Site, finished: dict[str, Any]) -> None:
    attempts = site.service.client.get(f"/v1/jobs/{finished['job']['id']}/attempts").json()["data"]
    assert [attempt["outcome"] for attempt in attempts] == ["succeeded"]


def test_the_request_the_attempt_and_every_block_are_one_trace(site: Site, finished: dict[str, Any]) -> None:
    job_id = finished["job"]["id"]
    attempt = site.collector.one("attempt", job_id=job_id)
    request = site.collector.one("POST /v1/jobs", job_id=job_id)
    assert request.parent == ""
    start = site.collector.one("attempt started", job_id=job_id)
    assert (start.trace, start.parent) == (request.trace, request.id)
    assert (attempt.trace, attempt.parent) == (request.trace, start.id)
    assert (request.service, attempt.service) == ("quant-experts-api", "quant-experts-worker")
    assert attempt.attributes["qe.model"] == "local/tiny"
    assert attempt.attributes["qe.job.status"] == "succeeded"
    below = site.collector.below(start)
    assert {"fetch", "calibrating", "fitting", "packing", "block", "publish"} <= {span.name for span in below}
    blocks = [span for span in below if span.name == "block"]
    assert [block.attributes["qe.block"] for block in blocks] == [0, 1]
    for block in blocks:
        parts = site.collector.below(block)
        assert [span.name for span in parts] == ["read", "observe", "fit", "baseline", "forward", "write", "upload"]
        assert all(block.began <= span.began <= span.ended <= block.ended for span in parts)
        assert block.ended - block.began >= block.attributes["qe.seconds"]
    assert {span.trace for span in [*below, *blocks]} == {request.trace}
