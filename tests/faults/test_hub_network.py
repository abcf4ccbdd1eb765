"""A hub that limits, fails, stalls, breaks off, moves on: one clear error, nothing half-used, the first commit kept."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.contract.errors import FailureCode
from tests.faults.troubled_hub import FIRST, SECOND, Answer, Cut, Hub, Slow, troubled_hub
from tests.worker.conftest import Workshop
from worker.machine import hub_copies
from worker.supervisor import fetch
from worker.supervisor.hub_download import Access
from worker.supervisor.hub_download import Hub as Download
from worker.supervisor.lease import hold_lease
from worker.supervisor.supervisor import work

SHARD, TAIL = "model.safetensors", "tail.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with troubled_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def attempt(workshop: Workshop, job_id: str, **settings: Any) -> dict[str, Any]:
    work(workshop.context(**settings))
    return workshop.job(job_id)


def retry(workshop: Workshop, job_id: str) -> None:
    """As the API does it."""
    with workshop.connect() as connection:
        connection.execute(
            "UPDATE jobs SET status = 'queued', error = NULL, finished_at = NULL, started_at = NULL,"
            " queued_at = clock_timestamp() WHERE id = %s",
            (job_id,),
        )


def shelf(workshop: Workshop) -> list[str]:
    return sorted(path.name for path in (workshop.settings.resolved_home / "models" / "team--model").iterdir())


def told(workshop: Workshop) -> dict[str, Any]:
    """What the runner was told."""
    found: dict[str, Any] = json.loads((workshop.stage / "job").read_text())
    return found


def test_a_hub_that_limits_and_fails_now_and_then_is_waited_for(workshop: Workshop, hub: Hub) -> None:
    hub.order("info", Answer(429, {"Retry-After": "1"}))
    hub.order(SHARD, Answer(429, {"Retry-After": "0"}), Slow(0.3), Answer(500))
    job = attempt(workshop, workshop.add_job(model="team/model"))
    assert job["status"] == "succeeded", job["error"]
    assert shelf(workshop) == [FIRST]


def test_a_shard_that_breaks_off_goes_on_where_it_stopped(workshop: Workshop, hub: Hub) -> None:
    (workshop.stage / "job").touch()
    hub.order(SHARD, Cut(11_000_000), Cut(1))
    job = attempt(workshop, workshop.add_job(model="team/model"))
    assert job["status"] == "succeeded", job["error"]
    assert hub.ranges == [f"bytes={10 * 1024 * 1024}-"] * 2
    assert (Path(told(workshop)["model"]) / SHARD).read_bytes() == hub.repository[FIRST][SHARD]


def test_a_download_that_failed_goes_on_with_the_first_commit_although_the_branch_moved(
    workshop: Workshop, hub: Hub
) -> None:
    (workshop.stage / "job").touch()
    job_id = workshop.add_job(model="team/model")
    hub.order(TAIL, *[Answer(500)] * 3)
    job = attempt(workshop, job_id)
    assert (job["status"], job["error"]["code"], job["error"]["retryable"]) == ("failed", "model_unavailable", True)
    assert "the hub answered 500" in job["error"]["message"]
    assert shelf(workshop) == [f"partial_{FIRST}"]  # no runner ever saw it
    assert (workshop.stage / "job").read_text() == ""

    hub.at = SECOND
    hub.asked.clear()
    retry(workshop, job_id)
    job = attempt(workshop, job_id)
    assert job["status"] == "succeeded", job["error"]
    assert hub.asked == [f"1/{TAIL}"]  # the shard is there already
    assert shelf(workshop) == [FIRST]
    assert told(workshop)["model_commit"] == FIRST
    assert (Path(told(workshop)["model"]) / SHARD).read_bytes() == hub.repository[FIRST][SHARD]

    other = workshop.add_job(model="team/model")
    assert attempt(workshop, other)["status"] == "succeeded"
    assert told(workshop)["model_commit"] == SECOND
    assert shelf(workshop) == [FIRST, SECOND]


def test_a_hub_that_asks_to_wait_an_hour_does_not_get_an_hour_of_a_gpu(workshop: Workshop, hub: Hub) -> None:
    hub.order(SHARD, Answer(429, {"Retry-After": "3600"}))
    job_id = workshop.add_job(model="team/model")
    began = time.monotonic()
    job = attempt(workshop, job_id, hub_patience=3.0)
    assert time.monotonic() - began < 60
    assert (job["error"]["code"], job["error"]["retryable"]) == ("model_unavailable", True)
    assert "nothing arrived from the hub for 3 s" in job["error"]["message"]


def test_a_model_that_does_not_fit_on_the_disk_says_so_and_leaves_the_space(workshop: Workshop, hub: Hub) -> None:
    workshop.add_job()
    # A quota that everyone can set: no file beyond 4 MiB.
    quota = ("sh", "-c", 'ulimit -f 8192; exec "$@"', "sh", sys.executable, "-m", "quant_experts.model.hub")
    with hold_lease(workshop.settings, workshop.claim().ref, seconds_left=60) as lease:
        log, draining = workshop.stage / "log", threading.Event().is_set
        bringing = Download(workshop.settings, lease, log, draining, lambda: Access(None), command=quota)
        with pytest.raises(fetch.FetchFailed, match="does not fit on this machine's disk") as caught:
            bringing.bring("model", "team/model", "main", [].append)
    assert caught.value.code == FailureCode.OUT_OF_DISK
    assert shelf(workshop) == []


def test_downloads_that_nobody_took_up_are_swept_after_a_day_and_whole_models_stay(workshop: Workshop) -> None:
    home = workshop.settings.resolved_home
    names = {"partial_old": 25, "arriving_old": 25, "partial_new": 1, FIRST: 1000}
    for name, hours in names.items():
        directory = home / "models" / "team--model" / name / "deep"
        directory.mkdir(parents=True)
        (directory / "file").write_text("x")
        then = time.time() - hours * 3600
        for path in (directory / "file", directory, directory.parent):
            os.utime(path, (then, then))
    assert hub_copies.drop_stale_downloads(home) == 2
    assert shelf(workshop) == [FIRST, "partial_new"]
