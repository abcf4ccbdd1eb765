"""What a tenant used and what it occupies, to the second and the byte."""

from __future__ import annotations

from tests.app.conftest import Api, ok, problem
from tests.app.tenant_cases import CREATES


async def test_usage_sums_jobs_seconds_and_bytes_by_period(api: Api) -> None:
    dataset = ok(await api.client.post("/v1/datasets", **CREATES["POST /v1/datasets"]), 201)
    for number, status in enumerate(("succeeded", "failed")):
        job = await api.create_job()
        api.start(job["id"])
        api.end(job["id"], status)
        api.execute(
            "UPDATE jobs SET created_at = '2026-03-04T10:00Z', finished_at = '2026-04-01T10:00Z', artifact_bytes = 1000"
            " WHERE id = %s",
            [job["id"]],
        )
        api.execute(
            "INSERT INTO attempts (job_id, attempt, worker, started_at, ended_at, device)"
            " VALUES (%s, 1, 'w', '2026-03-31T23:59:30Z', '2026-04-01T00:01:00Z', %s)",
            [job["id"], ("cpu", "NVIDIA H100")[number]],
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
