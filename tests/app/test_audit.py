"""Every act is written down with who, what, which and when, in its own transaction."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from tests.app.conftest import Api, job_body, ok, problem
from tests.app.tenant_cases import CREATES, OBJECTS, Owned
from tests.app.test_tenants import mine  # noqa: F401 -- a fixture

ACTS = {
    "POST /v1/jobs": "job.created",
    "POST /v1/jobs/{job_id}/cancel": "job.cancelled",
    "POST /v1/jobs/{job_id}/retry": "job.retried",
    "DELETE /v1/jobs/{job_id}": "job.deleted",
    "DELETE /v1/jobs/{job_id}/artifacts": "job.artifacts_deleted",
    "POST /v1/datasets": "dataset.created",
    "PATCH /v1/datasets/{dataset_id}": "dataset.changed",
    "DELETE /v1/datasets/{dataset_id}": "dataset.deleted",
    "POST /v1/jobs/{job_id}/fork": "job.created",
    "POST /v1/jobs/{job_id}/pushes": "push.created",
    "POST /v1/jobs/{job_id}/pushes/{push_id}/cancel": "push.cancelled",
    "POST /v1/comparisons": "comparison.created",
    "POST /v1/comparisons/{comparison_id}/cancel": "comparison.cancelled",
    "DELETE /v1/comparisons/{comparison_id}": "comparison.deleted",
    "POST /v1/keys": "key.created",
    "POST /v1/keys/{key_id}/rotate": "key.rotated",
    "DELETE /v1/keys/{key_id}": "key.revoked",
    "POST /v1/webhooks": "webhook.created",
    "PATCH /v1/webhooks/{webhook_id}": "webhook.changed",
    "POST /v1/webhooks/{webhook_id}/rotate-secret": "webhook.secret_rotated",
    "POST /v1/webhooks/{webhook_id}/ping": "webhook.pinged",
    "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver": "webhook.redelivered",
    "DELETE /v1/webhooks/{webhook_id}": "webhook.deleted",
}
STATUS_BEFORE = {
    "POST /v1/jobs/{job_id}/pushes": "queued",
    "POST /v1/jobs/{job_id}/cancel": "queued",
    "POST /v1/jobs/{job_id}/retry": "failed",
    "DELETE /v1/jobs/{job_id}": "succeeded",
    "DELETE /v1/jobs/{job_id}/artifacts": "succeeded",
    "POST /v1/comparisons/{comparison_id}/cancel": "queued",
}


async def entries(api: Api, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ok(await api.client.get("/v1/audit", params=query))["data"]
    return found


def test_every_act_of_the_api_has_a_case() -> None:
    reads_by_post = {"POST /hub/api/models/{namespace}/{name}/paths-info/{revision}", "POST /v1/jobs:plan"}
    acts = {route for route in (*OBJECTS, *CREATES) if not re.match("GET|HEAD", route)}
    drafts = {route for route in acts if "/uploads" in route}  # the dataset made of them is the act
    assert acts - reads_by_post - drafts == set(ACTS)


@pytest.mark.parametrize("route", ACTS)
async def test_an_act_is_written_down(api: Api, mine: Owned, route: str) -> None:  # noqa: F811
    if route in STATUS_BEFORE:
        api.execute("ALTER TABLE jobs DISABLE TRIGGER guard_job")
        api.execute("UPDATE jobs SET status = %s, comparison_id = %s", [STATUS_BEFORE[route], mine.comparison_id])
        api.execute("ALTER TABLE jobs ENABLE TRIGGER guard_job")
    if ACTS[route] == "push.created":
        ok(await api.client.put("/v1/hub-token", json={"token": "hf_of_the_tenant"}))
    values = {**CREATES, **OBJECTS}[route]
    method, path = route.partition(" ")[0], mine.path(route, values)
    body = {name: value for name, value in values.items() if name in ("json", "files")}
    response = await api.client.request(method, path, **body, headers={"X-Request-Id": "the-act"})
    assert response.is_success, response.text
    (entry,) = [each for each in await entries(api, action=ACTS[route]) if each["request_id"] == "the-act"]
    assert entry["key_id"] == "bootstrap"
    made = response.json()["id"] if response.status_code == 201 and "/keys/" not in route else None
    assert entry["object_id"] in ([made] if made else vars(mine).values())
    assert entry in await entries(api, object_id=entry["object_id"], action=entry["action"])


async def test_what_was_refused_or_changed_nothing_is_not_written_down(api: Api) -> None:
    job = await api.create_job()
    for _ in range(2):
        ok(await api.client.post(f"/v1/jobs/{job['id']}/cancel"))
    await api.client.post("/v1/jobs", json=job_body(scheme="W9A9"))
    headers = {"Idempotency-Key": "one"}
    for _ in range(2):
        ok(await api.client.post("/v1/jobs", json=job_body(), headers=headers), 201)
    assert [each["action"] for each in await entries(api)] == ["job.created", "job.cancelled", "job.created"]


async def test_another_key_is_named_and_needs_the_scope_to_look(api: Api) -> None:
    key = ok(await api.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs:write"]}), 201)
    async with api.as_key(key["key"]) as theirs:
        ok(await theirs.post("/v1/jobs", json=job_body()), 201)
        problem(await theirs.get("/v1/audit"), 403, "missing-scope")
    assert [each["action"] for each in await entries(api, key_id=key["id"])] == ["job.created"]


async def test_a_secret_never_reaches_the_log(api: Api) -> None:
    key = ok(await api.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs:read"]}), 201)
    hook = ok(await api.client.post("/v1/webhooks", **CREATES["POST /v1/webhooks"]), 201)
    text = str(await entries(api))
    assert key["key"] not in text
    assert hook["secret"] not in text


async def test_the_role_of_the_api_can_only_add_to_the_log(api: Api) -> None:
    await api.create_job()
    with psycopg.connect(api.settings.database_url or "") as connection:
        connection.execute("SELECT set_config('role', 'qe_api', true), set_config('app.tenant', 'default', true)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM audit")
