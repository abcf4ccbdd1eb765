"""Finished jobs and their files can be deleted, one or many, and retention says what goes by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from tests.app.conftest import Api, ok, problem, started

ABSENT = "job_" + "0" * 32


async def finished(api: Api, status: str = "succeeded", **changes: Any) -> str:
    job_id = (await api.create_job(**changes))["id"]
    api.start(job_id)
    api.end(job_id, status)
    return str(job_id)


async def listed(api: Api, **params: Any) -> list[str]:
    return [job["id"] for job in ok(await api.client.get("/v1/jobs", params=params))["data"]]


async def test_a_deleted_job_is_nowhere_any_more_and_a_client_is_told_so(api: Api, tmp_path: Path) -> None:
    job_id, other = await finished(api, alias="team/m"), await finished(api)
    api.publish(job_id, "model.bin", b"x" * 10, tmp_path)
    api.execute("UPDATE jobs SET artifact_bytes = 10 WHERE id = %s", [job_id])
    assert (await api.client.delete(f"/v1/jobs/{job_id}")).status_code == 204
    for path in ("", "/events", "/layers", "/attempts", "/artifacts", "/artifacts/model.bin", "/logs"):
        problem(await api.client.get(f"/v1/jobs/{job_id}{path}"), 404, "not-found")
    problem(await api.client.delete(f"/v1/jobs/{job_id}"), 404, "not-found")
    problem(await api.client.post(f"/v1/jobs/{job_id}/retry"), 404, "not-found")
    problem(await api.client.post(f"/v1/jobs/{job_id}/fork", json={"scheme": "W4A8"}), 404, "not-found")
    assert (await api.client.get("/hub/api/models/team/m")).status_code == 404
    assert await listed(api) == [other]
    entries = ok(await api.client.get("/v1/audit", params={"object_id": job_id}))["data"]
    assert [entry["action"] for entry in entries] == ["job.deleted", "job.created"]


@pytest.mark.parametrize("status", ["queued", "running", "cancelling"])
async def test_a_job_that_has_not_finished_is_not_deleted(api: Api, status: str) -> None:
    job_id = (await api.create_job())["id"]
    if status != "queued":
        api.start(job_id)
    if status == "cancelling":
        ok(await api.client.post(f"/v1/jobs/{job_id}/cancel"))
    detail = problem(await api.client.delete(f"/v1/jobs/{job_id}"), 409, "job-not-finished")["detail"]
    assert f"is {status}: cancel it" in detail
    problem(await api.client.delete(f"/v1/jobs/{job_id}/artifacts"), 409, "job-not-finished")
    assert ok(await api.client.post("/v1/jobs:delete", json={"ids": [job_id]})) == {"deleted": [], "has_more": False}
    assert await listed(api) == [job_id]


async def test_artifacts_go_and_the_job_stays_with_its_figures(api: Api, tmp_path: Path) -> None:
    job_id = await finished(api)
    api.publish(job_id, "model.bin", b"x" * 10, tmp_path)
    api.execute("UPDATE jobs SET artifact_bytes = 10, summary = '{\"kl\": 1}' WHERE id = %s", [job_id])
    assert ok(await api.client.get("/v1/usage"))["stored"]["artifacts"] == 10
    for _ in range(2):
        assert (await api.client.delete(f"/v1/jobs/{job_id}/artifacts")).status_code == 204
    assert ok(await api.client.get(f"/v1/jobs/{job_id}/artifacts"))["data"] == []
    assert ok(await api.client.get(f"/v1/jobs/{job_id}"))["summary"] == {"kl": 1}
    assert ok(await api.client.get("/v1/usage"))["stored"]["artifacts"] == 0
    assert api.execute("SELECT prefix FROM storage_removals") == [(f"jobs/{job_id}/a1",)]


async def test_deleting_makes_room_for_a_tenant_that_is_full(settings: Settings) -> None:
    async with started(settings.model_copy(update={"max_stored_bytes": 100})) as api:
        job_id = await finished(api)
        api.execute("UPDATE jobs SET artifact_bytes = 101 WHERE id = %s", [job_id])
        api.service.meter.forget("default")
        body = {"model": {"id": "a/b"}, "calibration": {"dataset": "a/b"}, "scheme": "W4A6"}
        detail = problem(await api.client.post("/v1/jobs", json=body), 403, "storage-quota-exceeded")["detail"]
        assert "delete jobs" in detail
        await api.client.delete(f"/v1/jobs/{job_id}")
        ok(await api.client.post("/v1/jobs", json=body), 201)


async def test_what_a_deleted_job_used_stays_in_the_usage(api: Api) -> None:
    job_id, other = await finished(api), await finished(api, "failed")
    api.execute("UPDATE jobs SET artifact_bytes = 7 WHERE id = %s", [job_id])
    for each in (job_id, other):
        api.execute(
            "INSERT INTO attempts (job_id, attempt, worker, started_at, ended_at, device) VALUES (%s, 1, 'w',"
            " clock_timestamp() - interval '10 s', clock_timestamp() - interval '4 s', 'NVIDIA H100')",
            [each],
        )
    before = ok(await api.client.get("/v1/usage"))["periods"]
    ok(await api.client.post("/v1/jobs:delete", json={"ids": [job_id, other]}))
    after = ok(await api.client.get("/v1/usage"))["periods"]
    assert [{**period, "worker_seconds": 0, "gpu_seconds": 0} for period in before] == [
        {**period, "worker_seconds": 0, "gpu_seconds": 0} for period in after
    ]
    assert sum(period["gpu_seconds"] for period in after) == pytest.approx(12, abs=0.1)


async def test_many_go_at_once_by_what_they_are(api: Api) -> None:
    failed = [await finished(api, "failed", labels={"team": name}) for name in ("a", "a", "b")]
    kept = [await finished(api), (await api.create_job(labels={"team": "a"}))["id"]]
    chosen = {"status": ["failed"], "label": ["team=a"]}
    answer = ok(await api.client.post("/v1/jobs:delete", json=chosen))
    assert (sorted(answer["deleted"]), answer["has_more"]) == (sorted(failed[:2]), False)
    assert sorted(await listed(api)) == sorted([failed[2], *kept])
    past = {"finished_before": "2020-01-01T00:00:00Z"}
    assert ok(await api.client.post("/v1/jobs:delete", json=past))["deleted"] == []
    api.execute("UPDATE jobs SET finished_at = '2019-12-31T00:00Z' WHERE id = %s", [failed[2]])
    assert ok(await api.client.post("/v1/jobs:delete", json=past))["deleted"] == [failed[2]]


@pytest.mark.parametrize("body", [{}, {"status": []}, {"ids": [ABSENT], "status": ["failed"]}])
async def test_a_deletion_that_names_nothing_or_too_much_is_refused(api: Api, body: dict[str, Any]) -> None:
    problem(await api.client.post("/v1/jobs:delete", json=body), 422, "invalid-request")


async def test_more_than_a_thousand_go_in_parts(api: Api) -> None:
    await finished(api)
    api.execute(
        "INSERT INTO jobs (id, tenant, spec, model_id, method, scheme, status, finished_at, progress, labels)"
        " SELECT 'job_' || lpad(to_hex(n), 32, '0'), tenant, spec, model_id, method, scheme, 'failed',"
        " clock_timestamp(), progress, labels FROM jobs, generate_series(1, 1500) AS n"
    )
    answers = [ok(await api.client.post("/v1/jobs:delete", json={"status": ["failed"]})) for _ in range(2)]
    assert [(len(answer["deleted"]), answer["has_more"]) for answer in answers] == [(1000, True), (500, False)]
    assert len(await listed(api)) == 1


async def test_nobody_deletes_anothers_jobs_whatever_they_say_to_the_database(api: Api) -> None:
    job_id = await finished(api)
    api.execute("UPDATE jobs SET tenant = 'other' WHERE id = %s", [job_id])
    problem(await api.client.delete(f"/v1/jobs/{job_id}"), 404, "not-found")
    assert ok(await api.client.post("/v1/jobs:delete", json={"ids": [job_id]}))["deleted"] == []
    assert api.execute("SELECT deleted_at FROM jobs") == [(None,)]


async def test_retention_is_the_services_until_the_tenant_says_otherwise(api: Api) -> None:
    default = ok(await api.client.get("/v1/retention"))
    assert default == {
        "jobs_days": None, "events_days": None, "layers_days": None, "audit_days": None, "deliveries_days": 30,
        "own": [],
    }  # fmt: skip
    changed = ok(await api.client.patch("/v1/retention", json={"jobs_days": 90, "deliveries_days": 7}))
    assert changed == {**default, "jobs_days": 90, "deliveries_days": 7, "own": ["deliveries_days", "jobs_days"]}
    assert ok(await api.client.patch("/v1/retention", json={"deliveries_days": None})) == {
        **default, "jobs_days": 90, "own": ["jobs_days"],
    }  # fmt: skip
    entries = ok(await api.client.get("/v1/audit", params={"action": "retention.changed"}))["data"]
    assert [entry["details"] for entry in entries] == [
        {"deliveries_days": None},
        {"jobs_days": 90, "deliveries_days": 7},
    ]
    problem(await api.client.patch("/v1/retention", json={"audit_days": 29}), 422, "invalid-request")
