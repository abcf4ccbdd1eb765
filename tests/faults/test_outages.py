"""The whole service while Redis and PostgreSQL come and go, workers drain, and parts are restarted under load."""

from __future__ import annotations

import os
import random
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from core.wakeup import MOST_WAKE_UPS, QUEUE, RedisNotifier
from tests.faults.cluster import Cluster, running_cluster
from tests.services import wait_until

BODY = {"model": {"id": "local/small"}, "calibration": {"dataset": "ds_rows"}, "scheme": "W4A6"}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with running_cluster(workers=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """Whole before the test, and without a violation after it."""
    shared.revive(ready=True)
    yield shared
    for sign in shared.stage.glob("hold-*"):
        sign.unlink()
    shared.revive(ready=True)
    shared.wait_ended()
    assert shared.violations() == []
    assert {row["status"] for row in shared.rows("SELECT DISTINCT status FROM jobs")} <= {"succeeded"}


def broker(cluster: Cluster) -> redis.Redis:
    return redis.Redis.from_url(cluster.redis.url)


# Broker


def test_a_job_is_created_while_the_broker_is_down_and_runs_when_it_is_back(cluster: Cluster) -> None:
    cluster.stop_server("redis")
    began = time.monotonic()
    with cluster.client() as client:
        answer = client.post("/v1/jobs", json=BODY)
        assert answer.status_code == 201
        assert time.monotonic() - began < 5
        ready = client.get("/readyz").json()
    assert ready["status"] == "degraded"
    assert "jobs wait for the keeper" in ready["checks"]["broker"]
    cluster.accepted.add(answer.json()["id"])
    cluster.revive(ready=True)
    cluster.wait_ended()


def test_wake_ups_that_are_flushed_doubled_reordered_and_ancient_change_nothing(cluster: Cluster) -> None:
    with broker(cluster) as client:
        # With the workers held, the wake-ups stay in the queue for us to spoil.
        (cluster.stage / "hold-0").touch()
        held = [cluster.submit() for _ in range(2)]
        wait_until(lambda: not cluster.rows("SELECT 1 FROM jobs WHERE status = 'queued'"), what="two busy workers")
        flushed = [cluster.submit() for _ in range(3)]
        wait_until(lambda: client.llen(QUEUE) >= 3, what="the wake-ups")
        ancient = client.lrange(QUEUE, 0, -1)
        client.flushall()
        waiting = [cluster.submit() for _ in range(3)]
        wait_until(lambda: client.llen(QUEUE) >= 3, what="more wake-ups")
        spoiled = [*client.lrange(QUEUE, 0, -1), *ancient] * 2
        random.Random(4).shuffle(spoiled)
        client.delete(QUEUE)
        client.rpush(QUEUE, *spoiled)
        (cluster.stage / "hold-0").unlink()
        cluster.wait_ended([*held, *flushed, *waiting])
        wait_until(lambda: client.llen(QUEUE) == 0, what="the last wake-up heard")
    attempts = cluster.rows("SELECT id, attempt FROM jobs WHERE id = ANY(%s)", [*held, *flushed, *waiting])
    assert {row["attempt"] for row in attempts} == {1}


def test_a_full_redis_delays_jobs_and_loses_none(cluster: Cluster) -> None:
    with broker(cluster) as client:
        (cluster.stage / "hold-0").touch()
        held = [cluster.submit() for _ in range(2)]
        wait_until(lambda: not cluster.rows("SELECT 1 FROM jobs WHERE status = 'queued'"), what="two busy workers")
        before = cluster.submit()  # its wake-up waits in Redis when that is full
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        during = cluster.submit()
        (cluster.stage / "hold-0").unlink()
        # Workers take the next job without a wake-up.
        cluster.wait_ended([*held, before, during])
        client.config_set("maxmemory", 0)
        cluster.wait_ended([cluster.submit()])
        # Nobody has to start a worker again: it still hears wake-ups.
        client.config_set("maxmemory", 1)
        deaf = [cluster.submit() for _ in range(2)]
        client.config_set("maxmemory", 0)
        cluster.wait_ended(deaf)


def test_without_workers_the_wake_ups_in_redis_stay_few(cluster: Cluster) -> None:
    with broker(cluster) as client:
        notifier = RedisNotifier(cluster.redis.url.replace("/0", "/1"))
        other = redis.Redis.from_url(cluster.redis.url.replace("/0", "/1"))
        other.rpush(QUEUE, *["{}"] * (MOST_WAKE_UPS - 1))
        for _ in range(3):
            notifier.notify("job")
        assert other.llen(QUEUE) == MOST_WAKE_UPS
        other.flushdb()
        assert client.ping()


# Database


def outages(cluster: Cluster, *, seed: int, jobs: int, times: int) -> None:
    """Stop and start PostgreSQL at random moments while clients create ``jobs`` jobs and wait for them."""
    chance = random.Random(seed)
    print(f"seed {seed}: {jobs} jobs, {times} outages")
    with ThreadPoolExecutor(4) as clients:
        created = [clients.submit(cluster.submit) for _ in range(jobs)]
        for _ in range(times):
            time.sleep(chance.uniform(0.2, 1.5))
            how = chance.choice([signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
            cluster.stop_server("postgres", how)
            _answers_that_it_is_away(cluster)
            time.sleep(chance.uniform(0.0, 1.0))
            cluster.revive()
        ids = [each.result() for each in created]
    assert len(set(ids)) == jobs
    cluster.wait_ended(ids)
    statuses = cluster.rows("SELECT status, error FROM jobs WHERE id = ANY(%s)", ids)
    assert [row for row in statuses if row["status"] != "succeeded"] == []


def _answers_that_it_is_away(cluster: Cluster) -> None:
    with cluster.client() as client:
        answer = client.get("/v1/jobs")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json"), answer.text
        assert answer.json()["type"] == "/problems/unavailable"
        assert answer.headers["retry-after"] == "5"
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.get("/metrics").status_code == 200


def test_a_monkey_that_stops_and_starts_the_database_loses_no_job(cluster: Cluster) -> None:
    (cluster.stage / "pace").write_text("0.1")
    outages(cluster, seed=int(os.environ.get("FAULTS_SEED", "1")), jobs=8, times=3)
    (cluster.stage / "pace").unlink()


# Requests


def test_many_creates_at_once_with_one_key_make_one_job_although_the_api_is_killed(cluster: Cluster) -> None:
    chance = random.Random(9)
    for _ in range(2):
        key = uuid.uuid4().hex
        with ThreadPoolExecutor(8) as clients:
            created = [clients.submit(cluster.submit, key=key) for _ in range(16)]
            time.sleep(chance.uniform(0.0, 0.1))
            cluster.kill("api")
            wait_until(lambda: "api" in cluster.dead(), what="the end of the API")
            cluster.revive()
            ids = {each.result() for each in created}
        assert len(ids) == 1
        made = cluster.rows("SELECT id FROM jobs WHERE labels->>'key' = %s", key)
        assert [row["id"] for row in made] == list(ids)


# Drain


def test_a_worker_stopped_in_mid_block_finishes_it_and_the_next_one_begins_after_it(cluster: Cluster) -> None:
    # A runner that is deaf while it computes, as one in the middle of a block is.
    for sign in ("hold-1", "hold-2", "deaf"):
        (cluster.stage / sign).touch()
    for sign in cluster.stage.glob("at-*"):
        sign.unlink()
    job_id = cluster.submit()
    wait_until((cluster.stage / "at-1").exists, what="block 1")
    holder = str(cluster.job(job_id)["worker"]).partition("@")[0]
    child = cluster.parts[holder].child
    assert child is not None
    asked = time.monotonic()
    child.send_signal(signal.SIGTERM)
    wait_until(lambda: b"Warm shutdown" in (cluster.log / f"{holder}.log").read_bytes(), what="a warm shutdown")
    assert cluster.job(job_id)["status"] == "running"
    (cluster.stage / "hold-1").unlink()
    wait_until((cluster.stage / "at-2").exists, what="block 2")
    finished = time.monotonic()
    (cluster.stage / "deaf").unlink()
    wait_until(lambda: len(_attempts(cluster, job_id)) == 2, what="the next worker")
    handed_on = time.monotonic() - finished
    (cluster.stage / "hold-2").unlink()
    assert child.wait(30) == 0
    cluster.wait_ended([job_id])
    first, second = _attempts(cluster, job_id)
    assert (first["outcome"], first["blocks_done"]) == ("handed_back", 2)
    assert (second["outcome"], second["resumed_from_block"], second["blocks_done"]) == ("succeeded", 2, 2)
    assert first["worker"] != second["worker"]
    print(f"handed on {handed_on:.2f} s after the end of the block, {finished - asked:.2f} s after SIGTERM came")
    assert handed_on < 15


def _attempts(cluster: Cluster, job_id: str) -> list[dict[str, object]]:
    return cluster.rows("SELECT * FROM attempts WHERE job_id = %s ORDER BY attempt", job_id)
