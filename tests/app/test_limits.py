"""Bounds before work: waiting jobs, stored bytes, requests of a key; each refusal says which, and when to come back."""

from __future__ import annotations

import re

from app.rate_limit import TokenBuckets
from app.settings import Settings
from tests.app.conftest import Api, job_body, ok, problem, started
from tests.app.tenant_cases import CREATES


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
    async with started(settings.model_copy(update={"max_stored_bytes": 400})) as api:
        dataset = ok(await api.client.post("/v1/datasets", **CREATES["POST /v1/datasets"]), 201)
        assert dataset["bytes"] <= 400
        problem(await api.client.post("/v1/datasets", **CREATES["POST /v1/datasets"]), 403, "storage-quota-exceeded")
        assert len(list(api.service.storage.keys("datasets"))) == 1
        api.execute("UPDATE datasets SET bytes = 401")
        problem(await api.client.post("/v1/jobs", json=job_body()), 403, "storage-quota-exceeded")
        ok(await api.client.get("/v1/jobs"))


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
