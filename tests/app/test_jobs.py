"""Create, read, list, cancel and retry jobs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import redis

from core.contract.versions import UNDERSTOOD
from core.settings import Settings
from core.wakeup import QUEUE
from tests.app.conftest import Api, job_body, ok, problem, started
from tests.services import wait_until


async def test_a_created_job_is_queued_whole_and_workers_are_notified(api: Api, redis_url: str) -> None:
    response = await api.client.post(
        "/v1/jobs",
        json=job_body(name="first", labels={"team": "vision"}, options={"experts": 4, "group_size": "channel"}),
    )
    job = ok(response, 201)
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["status"] == "queued"
    assert job["method"] == "balanced"
    assert job["labels"] == {"team": "vision"}
    assert job["options"]["experts"] == 4
    assert job["attempts"] == 0
    assert job["progress"] == {
        "blocks_done": 0, "blocks_total": None, "seconds_per_block": None, "fraction": None, "eta_seconds": None,
        "current": {},
    }  # fmt: skip
    assert ok(await api.client.get(response.headers["location"])) == job
    with redis.Redis.from_url(redis_url) as client:
        await asyncio.to_thread(wait_until, lambda: client.llen(QUEUE) == 1, what="the wake-up in Redis")


async def test_no_answer_says_created_when_the_commit_fails(api: Api, redis_url: str) -> None:
    api.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$;
           CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON jobs DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION refuse()"""
    )
    try:
        problem(await api.client.post("/v1/jobs", json=job_body()), 500, "internal")
    finally:
        api.execute("DROP FUNCTION refuse CASCADE")
    assert api.execute("SELECT count(*) FROM jobs") == [(0,)]
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(QUEUE) == 0


async def test_a_silent_broker_costs_nothing_but_time(settings: Settings) -> None:
    async with started(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})) as api:
        assert (await api.create_job())["status"] == "queued"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:plan"])
async def test_a_number_too_large_to_be_one_is_pointed_at(api: Api, path: str) -> None:
    text = json.dumps(job_body(accept_if={"max_kl": 0.5})).replace("0.5", "1e999")
    response = await api.client.post(path, content=text, headers={"Content-Type": "application/json"})
    assert problem(response, 422, "invalid-request")["errors"][0]["pointer"] == "/accept_if/max_kl"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"scheme": "W9A9"}, "/scheme"),
        ({"method": "magic"}, "/method"),
        ({"options": {"ranks": 3}}, "/options/ranks"),
        ({"options": {"seed": 2**64}}, "/options/seed"),
        ({"options": {"group_size": 48}}, "/options/group_size"),
        ({"model": {"id": "../../etc"}}, "/model/id"),
        ({"model": {"id": "local/.."}}, "/model/id"),
        ({"name": "a\x00b"}, "/name"),
        ({"labels": {"UPPER": "x"}}, "/labels"),
        ({"surprise": True}, "/surprise"),
        ({"timeout_s": 1}, "/timeout_s"),
        ({"max_wait_s": 59}, "/max_wait_s"),
        ({"calibration": {"dataset": "acme/rows/../../x"}}, "/calibration/dataset"),
        ({"accept_if": {"max_kl": 0}}, "/accept_if/max_kl"),
        ({"accept_if": {}}, "/accept_if"),
        ({"target": {"max_bytes": 1}}, ""),
        ({"scheme": "auto"}, ""),
        ({"options": {"sensitive": {"share": 0.1}, "budget": {"bits_per_weight": 5}}}, ""),
        ({"options": {"sensitive": {"weight_bits": 8}}}, "/options/sensitive"),
    ],
)
async def test_a_wrong_field_is_pointed_at(api: Api, changes: dict[str, object], pointer: str) -> None:
    body = problem(await api.client.post("/v1/jobs", json=job_body(**changes)), 422, "invalid-request")
    assert any(error["pointer"].startswith(pointer) for error in body["errors"]), body["errors"]
    assert api.execute("SELECT count(*) FROM jobs") == [(0,)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"id": "Qwen2-VL"}}, "/model/id: write owner/name, as on the hub, or local/<directory>"),
        ({"calibration": {"dataset": "rows.jsonl/"}}, "/calibration/dataset: write the ds_… of an upload"),
        ({"name": "two\nlines"}, "/name: one line of text, not empty and without control characters"),
        ({"name": "\x9b31mred"}, "/name: one line of text"),
        ({"alias": "model"}, "/alias: write team/name"),
    ],
)
async def test_a_string_of_the_wrong_form_is_told_in_words(api: Api, changes: dict[str, object], says: str) -> None:
    refused = problem(await api.client.post("/v1/jobs", json=job_body(**changes)), 422, "invalid-request")
    assert refused["detail"].startswith(says)


async def test_a_job_shows_its_target_its_limits_and_later_its_verdict(api: Api) -> None:
    job = await api.create_job(scheme="auto", target={"max_bytes": 10**9}, accept_if={"max_kl": 0.05})
    assert job["target"] == {"max_bytes": 10**9, "max_kl": None}
    assert job["accept_if"]["max_kl"] == 0.05
    assert job["verdict"] is None
    api.start(job["id"])
    api.execute("UPDATE jobs SET verdict = 'rejected' WHERE id = %s", [job["id"]])
    api.end(job["id"], "succeeded")
    assert ok(await api.client.get(f"/v1/jobs/{job['id']}"))["verdict"] == "rejected"
    plain = await api.create_job()
    assert (plain["target"], plain["accept_if"], plain["verdict"]) == (None, None, None)


async def test_an_unknown_dataset_is_pointed_at(api: Api) -> None:
    body = job_body(calibration={"dataset": "ds_" + "0" * 32})
    refused = problem(await api.client.post("/v1/jobs", json=body), 422, "dataset-not-found")
    assert refused["errors"][0]["pointer"] == "/calibration/dataset"


async def test_a_local_model_must_lie_below_the_model_root(api: Api, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "models" / "file").touch()
    assert (await api.create_job(model={"id": "local/tiny"}))["model"]["id"] == "local/tiny"
    for name in ("absent", "link", "file"):
        response = await api.client.post("/v1/jobs", json=job_body(model={"id": f"local/{name}"}))
        assert problem(response, 422, "model-not-found")["errors"][0]["pointer"] == "/model/id"


async def test_without_a_model_root_there_are_no_local_models(settings: Settings) -> None:
    async with started(settings.model_copy(update={"model_root": None})) as api:
        response = await api.client.post("/v1/jobs", json=job_body(model={"id": "local/tiny"}))
        assert "QE_MODEL_ROOT" in problem(response, 422, "model-not-found")["detail"]


@pytest.mark.parametrize("job_id", ["job_" + "0" * 32, "job_1", "%00", "..", "job_%F0%28", "x" * 300])
async def test_a_job_that_does_not_exist_is_404(api: Api, job_id: str) -> None:
    problem(await api.client.get(f"/v1/jobs/{job_id}/events"), 404, "not-found")


async def test_pages_neither_repeat_nor_skip_while_jobs_come_in(api: Api) -> None:
    made = [(await api.create_job())["id"] for _ in range(5)]
    first = ok(await api.client.get("/v1/jobs", params={"limit": 2}))
    await api.create_job()
    second = ok(await api.client.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}))
    third = ok(await api.client.get("/v1/jobs", params={"limit": 2, "cursor": second["next_cursor"]}))
    seen = [job["id"] for page in (first, second, third) for job in page["data"]]
    assert seen == made[::-1]
    assert (third["has_more"], third["next_cursor"]) == (False, None)


async def test_filters_narrow_the_list(api: Api) -> None:
    vision = await api.create_job(labels={"team": "vision", "run": "a=b"})
    other = await api.create_job(labels={"team": "text"}, model={"id": "acme/other"}, scheme="W4A8")
    ok(await api.client.post(f"/v1/jobs/{other['id']}/cancel"))

    async def listed(**params: object) -> list[str]:
        return [job["id"] for job in ok(await api.client.get("/v1/jobs", params=params))["data"]]  # type: ignore[arg-type]

    assert await listed(status="cancelled") == [other["id"]]
    assert await listed(status=["cancelled", "queued"]) == [other["id"], vision["id"]]
    assert await listed(label="team=vision") == [vision["id"]]
    assert await listed(label=["team=vision", "run=a=b"]) == [vision["id"]]
    assert await listed(label="run") == [vision["id"]]
    assert await listed(model="acme/other") == [other["id"]]
    assert await listed(scheme="W4A6") == [vision["id"]]
    assert await listed(created_after=other["created_at"]) == [other["id"]]
    assert await listed(created_before=other["created_at"]) == [vision["id"]]
    assert await listed(created_after="0001-01-01T00:00:00+23:59", created_before="9999-12-31T23:59:59-23:59")
    for wrong in (
        {"state": "queued"},
        {"status": "done"},
        {"limit": 0},
        {"label": "\x00"},
        {"created_after": "2026-01-01"},
    ):
        problem(await api.client.get("/v1/jobs", params=wrong), 422, "invalid-request")


async def test_a_cursor_is_signed_and_bound_to_its_filters(api: Api) -> None:
    for _ in range(2):
        await api.create_job()
    cursor = ok(await api.client.get("/v1/jobs", params={"limit": 1}))["next_cursor"]
    flipped = cursor[:-2] + ("A" if cursor[-2] != "A" else "B") + cursor[-1]
    for params in ({"cursor": flipped}, {"cursor": "x"}, {"cursor": "é"}, {"cursor": cursor, "status": "queued"}):
        problem(await api.client.get("/v1/jobs", params=params), 400, "invalid-cursor")


async def test_cancelling_a_queued_job_ends_it_at_once_and_twice_is_once(api: Api) -> None:
    job = await api.create_job()
    first = ok(await api.client.post(f"/v1/jobs/{job['id']}/cancel"))
    assert first["status"] == "cancelled"
    assert first["finished_at"] is not None
    assert ok(await api.client.post(f"/v1/jobs/{job['id']}/cancel")) == first
    kinds = [event["type"] for event in ok(await api.client.get(f"/v1/jobs/{job['id']}/events"))["data"]]
    assert kinds == ["job.created", "job.cancel_requested", "job.cancelled"]


async def test_cancelling_a_running_job_asks_its_worker(api: Api) -> None:
    job = await api.create_job()
    api.start(job["id"])
    assert ok(await api.client.post(f"/v1/jobs/{job['id']}/cancel"))["status"] == "cancelling"
    assert ok(await api.client.post(f"/v1/jobs/{job['id']}/cancel"))["status"] == "cancelling"
    kinds = [event["type"] for event in ok(await api.client.get(f"/v1/jobs/{job['id']}/events"))["data"]]
    assert kinds.count("job.cancel_requested") == 1


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_a_finished_job_cannot_be_cancelled(api: Api, status: str) -> None:
    job = await api.create_job()
    api.start(job["id"])
    api.end(job["id"], status)
    problem(await api.client.post(f"/v1/jobs/{job['id']}/cancel"), 409, "job-finished")


async def test_a_failed_job_can_be_retried_and_keeps_its_blocks(api: Api, redis_url: str) -> None:
    job = await api.create_job()
    api.start(job["id"])
    progress = '{"model_commit": "c0ffee", "group": "qkv"}'
    api.execute("UPDATE jobs SET blocks_done = 3, blocks_total = 8, barren_attempts = 2, progress = %s", [progress])
    assert ok(await api.client.get(f"/v1/jobs/{job['id']}"))["progress"]["current"] == {"group": "qkv"}
    api.end(job["id"], "failed", {"code": "out_of_memory", "message": "no room", "retryable": True})
    assert ok(await api.client.get(f"/v1/jobs/{job['id']}"))["error"]["code"] == "out_of_memory"
    retried = ok(await api.client.post(f"/v1/jobs/{job['id']}/retry"))
    assert (retried["status"], retried["error"], retried["finished_at"]) == ("queued", None, None)
    assert (retried["attempts"], retried["progress"]["blocks_done"], retried["progress"]["current"]) == (1, 3, {})
    resolved = {name: value for name, value in retried["resolved"].items() if value is not None}
    assert resolved == {"model_commit": "c0ffee"}
    assert api.execute("SELECT barren_attempts FROM jobs") == [(0,)]
    with redis.Redis.from_url(redis_url) as client:
        await asyncio.to_thread(wait_until, lambda: client.llen(QUEUE) == 2, what="two wake-ups in Redis")
    problem(await api.client.post(f"/v1/jobs/{job['id']}/retry"), 409, "job-not-retryable")


async def test_a_hub_model_without_a_plan_is_warned_of_what_is_certain_of_its_scheme(api: Api) -> None:
    (warning,) = (await api.create_job(scheme="W8A8"))["warnings"]
    assert "more than 8 bits per quantized weight" in warning
    assert (await api.create_job())["warnings"] == []


async def test_the_time_left_is_said_only_when_it_is_known(api: Api) -> None:
    job = await api.create_job()
    api.start(job["id"])
    assert ok(await api.client.get(f"/v1/jobs/{job['id']}"))["progress"]["eta_seconds"] is None
    for ago, left, fraction in ((0, 30, 0.25), (10, 20, 0.5), (100, 0, 1.0)):
        api.forecast(job["id"], done=10, left=30, ago=ago)
        progress = ok(await api.client.get(f"/v1/jobs/{job['id']}"))["progress"]
        assert (progress["eta_seconds"], progress["fraction"]) == (
            pytest.approx(left, abs=1),
            pytest.approx(fraction, abs=0.03),
        )
        assert progress["current"] == {}
    api.end(job["id"], "succeeded")
    progress = ok(await api.client.get(f"/v1/jobs/{job['id']}"))["progress"]
    assert (progress["fraction"], progress["eta_seconds"]) == (1, None)


async def test_a_worker_and_a_cancel_at_once_leave_a_legal_job(api: Api) -> None:
    """The cancel waits for the row that the worker's transaction holds, then sees what the worker did."""
    import psycopg

    job = await api.create_job()
    assert api.settings.database_url is not None
    understood = f"-c qe.spec_version={UNDERSTOOD}"
    with psycopg.connect(api.settings.database_url, options=understood) as worker:
        worker.execute(
            "UPDATE jobs SET status = 'running', attempt = 1, lease_until = clock_timestamp() + interval '1 min'"
        )
        cancel = asyncio.create_task(api.client.post(f"/v1/jobs/{job['id']}/cancel"))
        done, _ = await asyncio.wait([cancel], timeout=0.3)
        assert not done
        worker.commit()
    assert ok(await cancel)["status"] == "cancelling"
