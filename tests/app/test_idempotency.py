"""A request that is sent twice is carried out once."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.app.conftest import Api, job_body, ok, problem
from tests.app.test_datasets import jsonl, row

KEY = {"Idempotency-Key": "d5f1"}


async def test_the_second_answer_is_the_first_one_marked(api: Api) -> None:
    first = await api.client.post("/v1/jobs", json=job_body(), headers=KEY)
    second = await api.client.post("/v1/jobs", json=dict(reversed(job_body().items())), headers=KEY)
    assert ok(second, 201) == ok(first, 201)
    assert second.headers["location"] == first.headers["location"]
    assert (first.headers.get("idempotency-replayed"), second.headers["idempotency-replayed"]) == (None, "true")
    assert api.execute("SELECT count(*) FROM jobs") == [(1,)]


async def test_another_body_under_the_same_key_is_refused(api: Api) -> None:
    await api.client.post("/v1/jobs", json=job_body(), headers=KEY)
    response = await api.client.post("/v1/jobs", json=job_body(scheme="W4A8"), headers=KEY)
    problem(response, 422, "idempotency-mismatch")


async def test_a_refused_request_does_not_use_up_the_key(api: Api) -> None:
    unknown = job_body(calibration={"dataset": "ds_" + "0" * 32})
    problem(await api.client.post("/v1/jobs", json=unknown, headers=KEY), 422, "dataset-not-found")
    ok(await api.client.post("/v1/jobs", json=job_body(), headers=KEY), 201)


async def test_many_at_once_make_one_job(api: Api) -> None:
    answers = await asyncio.gather(*[api.client.post("/v1/jobs", json=job_body(), headers=KEY) for _ in range(12)])
    assert {answer.status_code for answer in answers} <= {201, 409}
    made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert len(made) == 1
    assert api.execute("SELECT count(*) FROM jobs") == [(1,)]


async def test_while_the_first_is_being_answered_the_second_learns_to_wait(api: Api) -> None:
    assert api.settings.database_url is not None
    with psycopg.connect(api.settings.database_url) as first:
        first.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", ["default\x1fd5f1"])
        response = await api.client.post("/v1/jobs", json=job_body(), headers=KEY)
        assert problem(response, 409, "idempotency-in-progress")["retryable"] is True
        assert response.headers["retry-after"] == "1"
    ok(await api.client.post("/v1/jobs", json=job_body(), headers=KEY), 201)


async def test_after_a_day_the_key_is_new_again(api: Api) -> None:
    first = ok(await api.client.post("/v1/jobs", json=job_body(), headers=KEY), 201)
    api.execute("UPDATE idempotency SET created_at = created_at - interval '25 hours'")
    second = ok(await api.client.post("/v1/jobs", json=job_body(scheme="W4A8"), headers=KEY), 201)
    assert second["id"] != first["id"]
    assert ok(await api.client.post("/v1/jobs", json=job_body(scheme="W4A8"), headers=KEY), 201) == second


async def test_keys_of_two_tenants_do_not_meet(api: Api) -> None:
    made = {"name": "theirs", "scopes": ["jobs:read", "jobs:write"], "tenant": "acme"}
    theirs = ok(await api.client.post("/v1/keys", json=made), 201)["key"]
    mine = ok(await api.client.post("/v1/jobs", json=job_body(), headers=KEY), 201)
    async with api.as_key(theirs) as client:
        assert ok(await client.post("/v1/jobs", json=job_body(), headers=KEY), 201)["id"] != mine["id"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é".encode()])
async def test_an_unusable_key_is_refused(api: Api, key: str | bytes) -> None:
    response = await api.client.post("/v1/jobs", json=job_body(), headers=[("Idempotency-Key", key)])  # type: ignore[list-item]
    assert problem(response, 422, "invalid-request")["errors"][0]["pointer"] == "/header/Idempotency-Key"


WEBHOOK = {"url": "https://example.com/hook", "event_types": ["job.succeeded"]}
CREATES: dict[str, tuple[str, dict[str, Any]]] = {
    "key": ("/v1/keys", {"json": {"name": "k", "scopes": ["jobs:read"]}}),
    "key of another tenant": ("/v1/keys", {"json": {"name": "k", "scopes": ["jobs:read"], "tenant": "acme"}}),
    "webhook": ("/v1/webhooks", {"json": WEBHOOK}),
    "upload in parts": ("/v1/datasets/uploads", {"json": {"name": "rows"}}),
    "dataset": ("/v1/datasets", {"files": {"file": ("r.jsonl", jsonl(row()))}}),
}


@pytest.mark.parametrize("what", CREATES)
async def test_every_create_is_carried_out_once(api: Api, what: str) -> None:
    path, sent = CREATES[what]
    headers = {"Idempotency-Key": f"once {what}".replace(" ", "-")}
    first = await api.client.post(path, headers=headers, **sent)
    again = await api.client.post(path, headers=headers, **sent)
    assert (again.status_code, again.json()) == (201, ok(first, 201))
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert ok(await api.client.post(path, **sent), 201)["id"] != first.json()["id"]
    stored = str(api.execute("SELECT response FROM idempotency"))
    for secret in {"key", "secret"} & set(first.json()):
        assert first.json()[secret] not in stored


async def test_a_rotation_is_carried_out_once(api: Api) -> None:
    webhook = ok(await api.client.post("/v1/webhooks", json=WEBHOOK), 201)["id"]
    key = ok(await api.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs:read"]}), 201)["id"]
    for path in (f"/v1/webhooks/{webhook}/rotate-secret", f"/v1/keys/{key}/rotate"):
        headers = {"Idempotency-Key": path.replace("/", "-")}
        first, again = [await api.client.post(path, headers=headers, json={}) for _ in range(2)]
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        assert again.headers["Idempotency-Replayed"] == "true"
        problem(await api.client.post(path, headers=headers, json={"keep_previous_s": 60}), 422, "idempotency-mismatch")
