"""Bounds before work: waiting jobs, stored bytes, requests of a key; each refusal says which, and when to come back."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import httpx
import psycopg
import pytest

from app.access.quotas import STORAGE_LOCK, StorageMeter
from app.db.engine import create_engine
from app.uploads.parts import bytes_of_tenant
from app.web.rate_limit import TokenBuckets
from core.settings import Settings
from core.storage import storage_from_url
from core.storage.local import LocalStorage
from tests.app.conftest import Api, job_body, ok, problem, started
from tests.app.tenant_cases import CREATES, ROW
from tests.app.test_datasets import jsonl, row
from tests.services import ObjectStore, wait_until


async def test_beyond_the_waiting_jobs_a_job_is_refused_until_one_is_gone(settings: Settings) -> None:
    async with started(settings.model_copy(update={"max_queued_jobs": 2})) as api:
        first = await api.create_job()
        second = await api.create_job()
        refused = await api.client.post("/v1/jobs", json=job_body())
        assert problem(refused, 429, "too-many-queued-jobs")["retryable"] is True
        assert int(refused.headers["retry-after"]) > 0
        ok(await api.client.post(f"/v1/jobs/{first['id']}/cancel"))
        await api.create_job()
        problem(await api.client.post(f"/v1/jobs/{first['id']}/retry"), 429, "too-many-queued-jobs")
        key = ok(await api.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs:write"], "tenant": "acme"}), 201)
        async with api.as_key(key["key"]) as theirs:  # another tenant's bound is its own
            ok(await theirs.post("/v1/jobs", json=job_body()), 201)
        api.start(second["id"])
        await api.create_job()


async def test_beyond_the_stored_bytes_uploads_and_jobs_are_refused(settings: Settings) -> None:
    most = len(ROW) + 10
    async with started(settings.model_copy(update={"max_stored_bytes": most})) as api:
        dataset = ok(await api.client.post("/v1/datasets", **CREATES["POST /v1/datasets"]), 201)
        assert dataset["bytes"] <= most
        problem(await api.client.post("/v1/datasets", **CREATES["POST /v1/datasets"]), 403, "storage-quota-exceeded")
        assert len(list(api.service.storage.keys("datasets"))) == 1
        api.execute("UPDATE datasets SET bytes = %s", [most + 1])
        problem(await api.client.post("/v1/jobs", json=job_body()), 403, "storage-quota-exceeded")
        ok(await api.client.get("/v1/jobs"))


async def test_parts_of_unfinished_uploads_count_as_stored(settings: Settings) -> None:
    rows = jsonl(*(row(text="x" * 100) for _ in range(8)))
    halves = rows[:1000], rows[1000:]
    async with started(settings.model_copy(update={"max_stored_bytes": len(rows) + 100})) as api:

        async def send(upload: str, number: int, content: bytes) -> httpx.Response:
            return await api.client.put(f"/v1/datasets/uploads/{upload}/parts/{number}", content=content)

        first, second = [ok(await api.client.post("/v1/datasets/uploads", json={}), 201)["id"] for _ in range(2)]
        ok(await send(first, 1, halves[0]))
        ok(await send(first, 2, halves[1]))
        assert ok(await api.client.get("/v1/usage"))["stored"] == {
            "datasets": 0, "artifacts": 0, "uploads": len(rows), "total": len(rows),
        }  # fmt: skip
        refused = problem(await send(second, 1, halves[0]), 403, "storage-quota-exceeded")
        assert f"has stored {len(rows)} of {len(rows) + 100} bytes" in refused["detail"]
        problem(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", rows)}), 403, "storage-quota-exceeded")
        ok(await send(second, 1, halves[0][:100]))
        ok(await send(first, 1, halves[0]))  # in place of itself
        assert ok(await api.client.get(f"/v1/datasets/uploads/{second}"))["bytes"] == 100
        # The whole takes the place of its parts; with them it would not fit.
        whole = {"sha256": hashlib.sha256(rows).hexdigest()}
        ok(await api.client.post(f"/v1/datasets/uploads/{first}/complete", json=whole), 201)
        assert ok(await api.client.get("/v1/usage"))["stored"]["uploads"] == 100
        assert (await api.client.delete(f"/v1/datasets/uploads/{second}")).status_code == 204
        assert ok(await api.client.get("/v1/usage"))["stored"]["total"] == len(rows)


def gated(content: bytes, begun: list[int], everybody: asyncio.Event, of: int) -> AsyncIterator[bytes]:
    """A body that ends when ``of`` bodies have begun: whatever is checked before a body has been."""

    async def body() -> AsyncIterator[bytes]:
        yield content[:1]
        begun.append(1)
        if len(begun) == of:
            everybody.set()
        await asyncio.wait_for(everybody.wait(), 20)
        yield content[1:]

    return body()


@pytest.mark.parametrize("processes", [1, 2])
async def test_parts_sent_at_the_same_moment_do_not_pass_the_bound_together(
    settings: Settings, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete_slowly(storage: LocalStorage, key: str) -> None:
        time.sleep(0.05)
        delete(storage, key)

    delete = LocalStorage.delete
    monkeypatch.setattr(LocalStorage, "delete", delete_slowly)
    settings = settings.model_copy(update={"max_stored_bytes": 1000})
    begun: list[int] = []
    everybody = asyncio.Event()
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(started(settings)) for _ in range(processes)]
        upload = ok(await apis[0].client.post("/v1/datasets/uploads", json={}), 201)["id"]

        async def send(number: int) -> httpx.Response:
            body = gated(bytes([number]) * 400, begun, everybody, of=7)
            client = apis[number % processes].client
            return await client.put(f"/v1/datasets/uploads/{upload}/parts/{number}", content=body)

        answers = await asyncio.gather(*(send(number) for number in range(1, 8)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 403, 403, 403, 403, 403]
        assert ok(await apis[-1].client.get("/v1/usage"))["stored"]["uploads"] == 800
        there = ok(await apis[0].client.get(f"/v1/datasets/uploads/{upload}"))["parts"]
        taken = {answer.json()["number"] for answer in answers if answer.status_code == 200}
        assert {part["number"] for part in there} == taken


async def test_of_many_parts_one_connection_waits_for_other_processes(settings: Settings) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with started(settings) as api:
        upload = ok(await api.client.post("/v1/datasets/uploads", json={}), 201)["id"]
        with psycopg.connect(str(settings.database_url)) as other:
            other.execute("SELECT pg_advisory_xact_lock(%s, hashtext('default'))", [STORAGE_LOCK])
            path = f"/v1/datasets/uploads/{upload}/parts/"
            parts = [asyncio.create_task(api.client.put(f"{path}{n}", content=b"x")) for n in range(1, 7)]
            stored = lambda: len(list(api.service.storage.keys("uploads"))) == 7  # noqa: E731
            await asyncio.to_thread(wait_until, stored, what="the parts")
            await asyncio.to_thread(wait_until, lambda: api.execute(waiting) != [(0,)], what="the first to wait")
            ok(await api.client.get("/v1/usage"))
            assert api.execute(waiting) == [(1,)]
            other.rollback()
        assert [(await part).status_code for part in parts] == [200] * 6


async def test_files_sent_at_the_same_moment_do_not_pass_the_bound_together(settings: Settings) -> None:
    rows = jsonl(*(row(text="x" * 100) for _ in range(4)))
    async with started(settings.model_copy(update={"max_stored_bytes": 2 * len(rows)})) as api:
        part = ok(await api.client.post("/v1/datasets/uploads", json={}), 201)["id"]
        ok(await api.client.put(f"/v1/datasets/uploads/{part}/parts/1", content=rows[:10]))
        sent = (api.client.post("/v1/datasets", files={"file": ("r.jsonl", rows)}) for _ in range(6))
        answers = await asyncio.gather(*sent)
        assert sorted(answer.status_code for answer in answers) == [201, 403, 403, 403, 403, 403]
        assert len(list(api.service.storage.keys("datasets"))) == 1


async def test_a_part_that_is_refused_leaves_the_one_before_in_its_place(settings: Settings) -> None:
    async with started(settings.model_copy(update={"max_stored_bytes": 1000})) as api:
        upload = ok(await api.client.post("/v1/datasets/uploads", json={}), 201)["id"]
        path = f"/v1/datasets/uploads/{upload}/parts/1"
        first = ok(await api.client.put(path, content=b"x" * 900))
        api.execute("INSERT INTO tenant_limits (tenant, max_stored_bytes) VALUES ('default', 950)")
        ok(await api.client.put(path, content=b"x" * 900))
        begun, everybody = [], asyncio.Event()  # type: ignore[var-annotated]
        later = asyncio.create_task(api.client.put(path, content=gated(b"y" * 940, begun, everybody, of=2)))
        await asyncio.to_thread(wait_until, lambda: begun, what="the body")
        api.execute("UPDATE tenant_limits SET max_stored_bytes = 930")
        everybody.set()
        problem(await later, 403, "storage-quota-exceeded")
        assert ok(await api.client.get(f"/v1/datasets/uploads/{upload}"))["parts"] == [first]


async def test_parts_of_one_tenant_are_not_anothers(settings: Settings) -> None:
    async with started(settings.model_copy(update={"max_stored_bytes": 1000})) as api:
        upload = ok(await api.client.post("/v1/datasets/uploads", json={}), 201)["id"]
        ok(await api.client.put(f"/v1/datasets/uploads/{upload}/parts/1", content=b"x" * 1000))
        new = {"name": "k", "scopes": ["datasets:write", "jobs:write", "usage:read"], "tenant": "acme"}
        async with api.as_key(ok(await api.client.post("/v1/keys", json=new), 201)["key"]) as theirs:
            assert ok(await theirs.get("/v1/usage"))["stored"]["total"] == 0
            other = ok(await theirs.post("/v1/datasets/uploads", json={}), 201)["id"]
            ok(await theirs.put(f"/v1/datasets/uploads/{other}/parts/1", content=b"x" * 1000))
            ok(await theirs.post("/v1/jobs", json=job_body()), 201)


async def test_parts_count_against_new_jobs_too(api: Api) -> None:
    upload = ok(await api.client.post("/v1/datasets/uploads", json={}), 201)["id"]
    ok(await api.client.put(f"/v1/datasets/uploads/{upload}/parts/1", content=b"x" * 100))
    api.execute("INSERT INTO tenant_limits (tenant, max_stored_bytes) VALUES ('default', 99)")
    problem(await api.client.post("/v1/jobs", json=job_body()), 403, "storage-quota-exceeded")


async def test_a_store_that_is_away_is_no_reason_to_refuse_a_job(object_store: ObjectStore, settings: Settings) -> None:
    away = object_store.bucket().replace(object_store.endpoint, "http://127.0.0.1:9")
    engine = create_engine(str(settings.database_url))
    assert await StorageMeter(partial(bytes_of_tenant, storage_from_url(away)), engine).unfinished("default") == 0


async def test_one_tenant_may_have_bounds_of_its_own(api: Api) -> None:
    api.execute("INSERT INTO tenant_limits (tenant, max_queued_jobs) VALUES ('default', 1)")
    await api.create_job()
    problem(await api.client.post("/v1/jobs", json=job_body()), 429, "too-many-queued-jobs")


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(settings: Settings) -> None:
    async with started(settings.model_copy(update={"requests_per_minute": 3})) as api:
        for left in (2, 1, 0):
            response = await api.client.get("/v1/jobs")
            assert ok(response) is not None
            assert response.headers["ratelimit-policy"] == '"requests";q=3;w=60'
            assert re.fullmatch(rf'"requests";r={left};t=\d+', response.headers["ratelimit"])
        refused = await api.client.get("/v1/jobs")
        assert problem(refused, 429, "rate-limited")["retryable"] is True
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
        assert (await api.client.get("/healthz")).status_code == 200


async def test_zero_means_no_limit(settings: Settings) -> None:
    async with started(settings.model_copy(update={"requests_per_minute": 0})) as api:
        assert "ratelimit" not in (await api.client.get("/v1/jobs")).headers


def test_tokens_come_back_evenly_and_no_more_than_the_bucket_holds() -> None:
    now = 0.0
    buckets = TokenBuckets(60, clock=lambda: now)
    assert sum(buckets.take("a").allowed for _ in range(100)) == 60
    assert buckets.take("b").allowed
    refused = buckets.take("a")
    assert (refused.allowed, refused.retry_after, refused.full_after) == (False, 1, 60)
    now = 10.0
    assert sum(buckets.take("a").allowed for _ in range(100)) == 10
    now = 10_000.0
    assert sum(buckets.take("a").allowed for _ in range(100)) == 60


async def test_whole_numbers_may_have_a_point_and_keep_their_bounds(api: Api) -> None:
    made = ok(await api.client.post("/v1/jobs", json=job_body(timeout_s=3600.0)), 201)
    assert made["timeout_s"] == 3600
    for wrong in (3600.5, "3600", True, 59.0):
        problem(await api.client.post("/v1/jobs", json=job_body(timeout_s=wrong)), 422, "invalid-request")
    schemas = ok(await api.client.get("/openapi.json"))["components"]["schemas"]
    bounds = {"type": "integer", "minimum": 60, "maximum": 604800}
    assert bounds.items() <= schemas["JobRequest"]["properties"]["timeout_s"].items()
