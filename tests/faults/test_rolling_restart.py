"""API processes and workers restart one after the other under a stream of requests: none that was answered is lost."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.faults.cluster import KEY, running_cluster
from tests.services import wait_until
from worker.embedded.servers import free_port

BODY = {"model": {"id": "local/small"}, "calibration": {"dataset": "ds_rows"}, "scheme": "W4A6"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rolling_restart_under_load_loses_no_request_and_no_job() -> None:
    over = threading.Event()
    broken: list[str] = []

    def create(urls: list[str]) -> list[str]:
        """As behind a load balancer: a connection that is refused goes to the other process; an answer is an answer.

        A new job every few seconds, and in between the same request again and again: many requests, few jobs.
        """
        made: list[str] = []
        key, renewed = uuid.uuid4().hex, time.monotonic()
        with httpx.Client(headers={"Authorization": f"Bearer {KEY}", "Connection": "close"}, timeout=60) as client:
            while not over.is_set():
                if time.monotonic() > renewed + 6:
                    key, renewed = uuid.uuid4().hex, time.monotonic()
                for url in random.sample(urls, 2):
                    try:
                        answer = client.post(f"{url}/v1/jobs", json=BODY, headers={"Idempotency-Key": key})
                    except httpx.ConnectError:
                        continue
                    except httpx.TransportError as error:  # accepted, and not answered: that is not graceful
                        broken.append(repr(error))
                        continue
                    assert answer.status_code == 201, answer.text
                    made.append(str(answer.json()["id"]))
                    break
                over.wait(0.1)
        return made

    with running_cluster(workers=2) as cluster:
        port = free_port()
        api = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--port", str(port)]
        cluster.add_part("api-2", [*api, "--timeout-graceful-shutdown", "10"])
        urls = [f"http://127.0.0.1:{each}" for each in (cluster.settings.port, port)]
        wait_until(lambda: _serves(urls[1]), seconds=120, what="the second API")
        with ThreadPoolExecutor(2) as clients:
            streams = [clients.submit(create, urls) for _ in range(2)]
            try:
                for name, url in (("api", urls[0]), ("api-2", urls[1])):
                    cluster.stop(name)
                    cluster.start(name)
                    wait_until(lambda url=url: _serves(url), seconds=120, what=name)
                for name in ("worker-1", "worker-2"):
                    cluster.stop(name)
                    cluster.start(name)
                    cluster.wait_ready(name)
            finally:
                over.set()
            answered = [job_id for stream in streams for job_id in stream.result()]
        assert broken == []
        ids = set(answered)
        assert len(answered) > len(ids) > 2
        cluster.accepted.update(ids)
        cluster.wait_ended(ids, seconds=240)
        print(f"{len(answered)} answers, {len(ids)} jobs")
        assert cluster.violations() == []
        outcomes = cluster.rows("SELECT DISTINCT outcome FROM attempts WHERE job_id = ANY(%s)", list(ids))
        assert {row["outcome"] for row in outcomes} <= {"succeeded", "handed_back"}


def _serves(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz").status_code == 200
    return False
