"""A connection that breaks at COMMIT: nobody was told whether it is in, and still nothing is lost, nothing twice."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from core.settings import Settings
from tests.app.conftest import BOOTSTRAP_KEY, Api, job_body, ok, problem, started
from tests.app.tenant_cases import CREATES
from tests.faults.cutting_proxy import CuttingProxy, cutting_proxy
from tests.worker.conftest import Workshop
from worker.supervisor.supervisor import work

KEY = {"Idempotency-Key": "the-one"}


@pytest.fixture
def proxy(database_url: str) -> Iterator[CuttingProxy]:
    with tempfile.TemporaryDirectory(prefix="qe-cut-") as short, cutting_proxy(database_url, Path(short)) as proxy:
        yield proxy


@pytest.fixture
def settings(proxy: CuttingProxy, redis_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home", api_key=BOOTSTRAP_KEY, secret="s" * 40, database_url=proxy.url, redis_url=redis_url
    )


def work_until_done(workshop: Workshop, proxy: CuttingProxy, job_id: str) -> dict[str, Any]:
    """As Celery does it: the next wake-up comes after a failed claim."""
    for _ in range(10):
        with contextlib.suppress(psycopg.OperationalError):
            work(workshop.context(database_url=proxy.url))
        job = workshop.job(job_id)
        if job["status"] not in ("queued", "running"):
            break
    return job


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_claim_cut_at_its_commit_costs_neither_a_lease_nor_an_attempt(
    workshop: Workshop, proxy: CuttingProxy, cut: Any
) -> None:
    job_id = workshop.add_job()
    proxy.order.append(cut)
    job = work_until_done(workshop, proxy, job_id)
    assert proxy.cuts == [cut]
    assert (job["status"], job["attempt"]) == ("succeeded", 1)


@pytest.mark.parametrize("seed", [1])
def test_a_job_whose_commits_are_cut_at_random_ends_once_with_the_same_bytes(
    workshop: Workshop, proxy: CuttingProxy, seed: int
) -> None:
    dataset = workshop.add_dataset()
    reference = workshop.add_job(dataset=dataset)
    work(workshop.context("reference"))
    job_id = workshop.add_job(dataset=dataset)
    chance = random.Random(seed)
    proxy.order.extend(chance.choices(["pass", "before", "after"], weights=[6, 2, 2], k=30))
    job = work_until_done(workshop, proxy, job_id)
    assert {"before", "after"} <= set(proxy.cuts), f"seed {seed}: {proxy.cuts}"
    assert job["status"] == "succeeded", f"seed {seed}: {proxy.cuts} {job['error']}"
    assert workshop.artifact(job_id) == workshop.artifact(reference)
    events = workshop.events(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    ends = [event["type"] for event in events if event["type"] in ("job.succeeded", "job.failed", "job.cancelled")]
    assert ends == ["job.succeeded"]
    blocks = [event["data"]["block"] for event in events if event["type"] == "job.block"]
    assert blocks == [0, 1, 2, 3]


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_create_cut_at_its_commit_makes_one_job_when_it_is_repeated_with_its_key(
    settings: Settings, proxy: CuttingProxy, cut: Any
) -> None:
    async with started(settings) as api:
        proxy.order.append(cut)
        first = await api.client.post("/v1/jobs", json=job_body(), headers=KEY)
        assert problem(first, 503, "unavailable")["retryable"] is True
        assert first.headers["retry-after"] == "5"
        second = await api.client.post("/v1/jobs", json=job_body(), headers=KEY)
        assert ok(second, 201)["status"] == "queued"
        assert ("Idempotency-Replayed" in second.headers) == (cut == "after")
        assert api.execute("SELECT count(*) FROM jobs") == [(1,)]


READS = 1
"""Transactions of an upload that only read and end before the one that keeps its row."""


@pytest.mark.parametrize(("cut", "rows"), [("before", 0), ("after", 1)])
async def test_a_dataset_whose_row_came_through_has_its_bytes(
    settings: Settings, proxy: CuttingProxy, cut: Any, rows: int
) -> None:
    row = b'{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}\n'
    async with started(settings) as api:
        proxy.order.extend([*["pass"] * READS, cut])
        problem(await _upload(api, row), 503, "unavailable")
        found = api.execute("SELECT key, bytes FROM datasets")
        assert [(key is not None and api.service.storage.size(key)) for key, _ in found] == [len(row)] * rows
        ok(await _upload(api, row), 201)


async def _upload(api: Api, content: bytes) -> httpx.Response:
    return await api.client.post("/v1/datasets", files={"file": ("rows.jsonl", content)})


async def test_after_a_failover_every_pooled_connection_is_made_anew_and_no_request_fails(settings: Settings) -> None:
    async with started(settings) as api:
        for _ in range(3):
            await api.create_job()
        # With a time to wait: without one it only asks, and the server process may still begin a statement.
        ended = api.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert ended
        assert all(was for (was,) in ended)
        for _ in range(3):
            await api.create_job()
        assert api.execute("SELECT count(*) FROM jobs") == [(6,)]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/comparisons", "/v1/webhooks"])
async def test_a_primary_that_became_a_replica_is_unavailable_until_another_is_the_primary(
    settings: Settings, path: str
) -> None:
    async with started(settings) as api:
        name = api.execute("SELECT current_database()")[0][0]
        api.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        response = await api.client.post(path, **CREATES[f"POST {path}"])
        assert "retry-after" in response.headers
        problem(response, 503, "unavailable")
        with psycopg.connect(settings.database_url or "", autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
        ok(await api.client.post(path, **CREATES[f"POST {path}"]), 201)  # although the pool held the replica's session
