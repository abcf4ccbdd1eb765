"""What a tenant used and what it occupies, to the second and the byte."""

from __future__ import annotations

from app.ui import formats as words
from core.settings import Settings
from tests.app.conftest import Api, ok, problem, started
from tests.app.tenant_cases import CREATES


async def test_usage_sums_jobs_seconds_and_bytes_by_period(api: Api) -> None:
    dataset = ok(await api.client.post("/v1/datasets", **CREATES["POST /v1/datasets"]), 201)
    for number, status in enumerate(("succeeded", "failed")):
        job_id = "job_" + f"{number}" * 32
        api.execute(
            "INSERT INTO jobs (id, tenant, spec, model_id, method, scheme, created_at, status, lease_until) VALUES"
            " (%s, 'default', '{}', 'a/b', 'qe', 'W4A6', '2026-03-04T10:00Z', 'running', now())",
            [job_id],
        )
        api.execute(
            "UPDATE jobs SET finished_at = '2026-04-01T10:00Z', artifact_bytes = 1000, status = %s, lease_until = NULL"
            " WHERE id = %s",
            [status, job_id],
        )
        api.execute(
            "INSERT INTO attempts (job_id, attempt, worker, started_at, ended_at, device)"
            " VALUES (%s, 1, 'w', '2026-03-31T23:59:30Z', '2026-04-01T00:01:00Z', %s)",
            [job_id, ("cpu", "NVIDIA H100")[number]],
        )
    span = {"since": "2026-01-01T00:00:00Z", "until": "2026-05-01T00:00:00Z", "by": "month"}
    usage = ok(await api.client.get("/v1/usage", params=span))
    march, april = usage["periods"]
    assert (march["start"], march["jobs_created"], march["jobs_succeeded"]) == ("2026-03-01T00:00:00Z", 2, 0)
    assert (march["worker_seconds"], march["gpu_seconds"], march["bytes_added"]) == (180.0, 90.0, 0)
    assert (april["jobs_succeeded"], april["jobs_failed"], april["bytes_added"]) == (1, 1, 2000)
    assert usage["stored"] == {
        "datasets": dataset["bytes"],
        "artifacts": 2000,
        "uploads": 0,
        "total": dataset["bytes"] + 2000,
    }
    days = ok(await api.client.get("/v1/usage", params={**span, "by": "day"}))["periods"]
    assert [day["start"][:10] for day in days] == ["2026-03-04", "2026-03-31", "2026-04-01"]


async def test_usage_has_what_there_is_now_beside_the_limits_of_the_tenant(api: Api) -> None:
    running, cancelling, _ = [(await api.create_job())["id"] for _ in range(3)]
    for job in (running, cancelling):
        api.start(job)
    ok(await api.client.post(f"/v1/jobs/{cancelling}/cancel"))
    usage = ok(await api.client.get("/v1/usage"))
    assert usage["unfinished"] == {"queued": 1, "running": 2}
    assert usage["limits"] == {
        "stored_bytes": 1 << 40,
        "queued_jobs": 1000,
        "running_jobs": 32,
        "requests_per_minute": 6000,
    }
    api.execute("INSERT INTO tenant_limits (tenant, max_queued_jobs, max_stored_bytes) VALUES ('default', 2, 9)")
    limits = ok(await api.client.get("/v1/usage"))["limits"]
    assert (limits["queued_jobs"], limits["stored_bytes"], limits["running_jobs"]) == (2, 9, 32)


async def test_where_nothing_is_limited_the_limits_are_null(settings: Settings) -> None:
    free = settings.model_copy(update={"requests_per_minute": 0, "max_running_jobs": None})
    async with started(free) as api:
        limits = ok(await api.client.get("/v1/usage"))["limits"]
        assert (limits["requests_per_minute"], limits["running_jobs"]) == (None, None)


async def test_no_time_is_negative_when_the_clock_was_set_back(api: Api) -> None:
    job = (await api.create_job())["id"]
    api.execute(
        "INSERT INTO attempts (job_id, attempt, worker, started_at, ended_at, device)"
        " SELECT %s, 1, 'w', t, t - interval '40 microseconds', 'cuda' FROM clock_timestamp() AS t",
        [job],
    )
    (period,) = ok(await api.client.get("/v1/usage"))["periods"]
    assert (str(period["worker_seconds"]), str(period["gpu_seconds"])) == ("0.0", "0.0")
    assert words.duration(-4e-05) == words.duration(-0.0) == "0 seconds"


async def test_another_tenants_use_is_not_counted(api: Api) -> None:
    await api.create_job()
    key = ok(await api.client.post("/v1/keys", json={"name": "k", "scopes": ["usage:read"], "tenant": "acme"}), 201)
    async with api.as_key(key["key"]) as theirs:
        assert ok(await theirs.get("/v1/usage"))["periods"] == []
    assert ok(await api.client.get("/v1/usage"))["periods"][0]["jobs_created"] == 1


async def test_a_range_that_is_none_or_too_long_is_refused(api: Api) -> None:
    for since, until in (
        ("2026-02-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2020-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
    ):
        problem(await api.client.get("/v1/usage", params={"since": since, "until": until}), 422, "invalid-request")
