"""Keys open what their scopes say, for their tenant, until they end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.access.auth import Scope
from app.main import create_app
from core.settings import Settings
from tests.app.conftest import BOOTSTRAP_KEY, Api, job_body, ok, problem, started
from tests.app.scope_table import BLOCK, PAGE, scope_table


async def make_key(api: Api, **changes: Any) -> dict[str, Any]:
    wanted = {"name": "k", "scopes": ["jobs:read"], **changes}
    created: dict[str, Any] = ok(await api.client.post("/v1/keys", json=wanted), 201)
    return created


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer nope", f"Basic {BOOTSTRAP_KEY}", f"Bearer {BOOTSTRAP_KEY}x", "Bearer é"],
)
async def test_without_a_valid_key_nothing_is_said(api: Api, header: str | None) -> None:
    api.client.headers.pop("authorization")
    headers = [] if header is None else [(b"authorization", header.encode())]
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("POST", "/v1/datasets"), ("GET", "/v1/schemes")):
        response = await api.client.request(method, path, headers=headers)  # type: ignore[arg-type]
        problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_key_is_shown_once_and_stored_as_a_digest(api: Api) -> None:
    created = await make_key(api)
    assert created["key"].startswith("qe_")
    listed = ok(await api.client.get("/v1/keys"))["data"]
    assert [entry["id"] for entry in listed] == [created["id"]]
    assert "key" not in listed[0]
    assert created["key"] not in str(api.execute("SELECT * FROM api_keys"))


ROUTES = {
    "GET /v1/jobs": Scope.JOBS_READ,
    "GET /v1/jobs/x/artifacts": Scope.JOBS_READ,
    "POST /v1/jobs": Scope.JOBS_WRITE,
    "POST /v1/jobs/x/cancel": Scope.JOBS_WRITE,
    "GET /v1/datasets": Scope.DATASETS_READ,
    "POST /v1/datasets": Scope.DATASETS_WRITE,
    "DELETE /v1/datasets/x": Scope.DATASETS_WRITE,
    "GET /v1/audit": Scope.AUDIT_READ,
    "GET /v1/usage": Scope.USAGE_READ,
    "GET /v1/webhooks": Scope.WEBHOOKS_READ,
    "POST /v1/webhooks/x/ping": Scope.WEBHOOKS_WRITE,
    "GET /v1/workers": Scope.WORKERS_READ,
    "GET /v1/keys": Scope.KEYS_ADMIN,
    "POST /v1/keys": Scope.KEYS_ADMIN,
}


def test_the_table_of_scopes_in_the_docs_has_every_route() -> None:
    block = BLOCK.search(PAGE.read_text())

    assert block is not None
    assert block[2] == scope_table(create_app(Settings())), "run `python -m tests.app.scope_table`"


@pytest.mark.parametrize("scope", Scope)
async def test_a_scope_opens_its_routes_and_no_other(api: Api, scope: Scope) -> None:
    async with api.as_key((await make_key(api, scopes=[scope]))["key"]) as client:
        for route, needed in ROUTES.items():
            method, path = route.split()
            response = await client.request(method, path, json=job_body() if path == "/v1/jobs" else None)
            assert (response.status_code == 403) == (needed != scope), (route, response.text)
        ok(await client.get("/v1/schemes"))


async def test_a_revoked_key_opens_nothing_from_the_next_request_on(api: Api) -> None:
    created = await make_key(api)
    async with api.as_key(created["key"]) as client:
        ok(await client.get("/v1/jobs"))
        revoked = ok(await api.client.delete(f"/v1/keys/{created['id']}"))
        assert revoked["revoked_at"] is not None
        assert ok(await api.client.delete(f"/v1/keys/{created['id']}")) == revoked
        problem(await client.get("/v1/jobs"), 401, "unauthenticated")
    problem(await api.client.delete("/v1/keys/key_1"), 404, "not-found")


async def test_a_key_ends_when_it_was_said_to(api: Api) -> None:
    now = datetime.now(UTC)
    past = await make_key(api, expires_at=(now + timedelta(hours=1)).isoformat())
    api.execute("UPDATE api_keys SET expires_at = clock_timestamp() WHERE id = %s", [past["id"]])
    future = await make_key(api, expires_at=(now + timedelta(hours=1)).isoformat())
    async with api.as_key(past["key"]) as client:
        problem(await client.get("/v1/jobs"), 401, "unauthenticated")
    async with api.as_key(future["key"]) as client:
        ok(await client.get("/v1/jobs"))
    assert ok(await api.client.get("/v1/keys"))["data"][0]["last_used_at"] is not None


async def test_a_key_that_would_have_ended_already_is_not_made(api: Api) -> None:
    body = {"name": "k", "scopes": ["jobs:read"], "expires_at": "2020-01-01T00:00:00Z"}
    refused = problem(await api.client.post("/v1/keys", json=body), 422, "invalid-request")
    assert refused["errors"][0]["pointer"] == "/expires_at"
    assert ok(await api.client.get("/v1/keys"))["data"] == []


async def test_a_key_that_ends_is_rotated_into_one_that_ends_then_too(api: Api) -> None:
    end = "2031-05-06T07:08:09Z"
    first = ok(await api.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs:read"], "expires_at": end}), 201)
    second = ok(await api.client.post(f"/v1/keys/{first['id']}/rotate"), 201)
    assert second["expires_at"] == first["expires_at"] == end


async def test_a_rotated_key_opens_the_same_and_the_one_before_ends_later(api: Api) -> None:
    first = await make_key(api, name="ci", scopes=["jobs:read"])
    second = ok(await api.client.post(f"/v1/keys/{first['id']}/rotate", json={"keep_previous_s": 3600}), 201)
    assert (second["name"], second["scopes"], second["expires_at"]) == ("ci", ["jobs:read"], None)
    for key in (first, second):
        async with api.as_key(key["key"]) as client:
            ok(await client.get("/v1/jobs"))
    third = ok(await api.client.post(f"/v1/keys/{second['id']}/rotate", json={"keep_previous_s": 0}), 201)
    async with api.as_key(second["key"]) as client:
        problem(await client.get("/v1/jobs"), 401, "unauthenticated")
    async with api.as_key(third["key"]) as client:
        ok(await client.get("/v1/jobs"))
    problem(await api.client.post(f"/v1/keys/{second['id']}/rotate"), 409, "conflict")
    admin = await make_key(api, scopes=["keys:admin"])
    async with api.as_key(admin["key"]) as client:  # rotating is no way to scopes that one lacks
        problem(await client.post(f"/v1/keys/{third['id']}/rotate"), 403, "missing-scope")


async def test_a_key_gives_no_more_than_it_has(api: Api) -> None:
    admin = await make_key(api, scopes=["keys:admin", "jobs:read"])
    async with api.as_key(admin["key"]) as client:
        beyond = {"name": "x", "scopes": ["jobs:read", "jobs:write"]}
        assert "jobs:write" in problem(await client.post("/v1/keys", json=beyond), 403, "missing-scope")["detail"]
        elsewhere = {"name": "x", "scopes": ["jobs:read"], "tenant": "other"}
        problem(await client.post("/v1/keys", json=elsewhere), 403, "missing-scope")
        assert (
            ok(await client.post("/v1/keys", json={"name": "x", "scopes": ["jobs:read"]}), 201)["tenant"] == "default"
        )


async def test_the_bootstrap_key_ends_keys_of_other_tenants_and_both_logs_say_so(api: Api) -> None:
    theirs = await make_key(api, scopes=["jobs:read", "audit:read"], tenant="other")
    problem(await api.client.delete(f"/v1/keys/{theirs['id']}"), 404, "not-found")
    problem(await api.client.delete(f"/v1/keys/{theirs['id']}?tenant=third"), 404, "not-found")
    assert [key["id"] for key in ok(await api.client.get("/v1/keys?tenant=other"))["data"]] == [theirs["id"]]
    successor = ok(await api.client.post(f"/v1/keys/{theirs['id']}/rotate?tenant=other"), 201)
    assert successor["tenant"] == "other"
    async with api.as_key(theirs["key"]) as client:
        ok(await client.get("/v1/jobs"))
        assert ok(await api.client.delete(f"/v1/keys/{theirs['id']}?tenant=other"))["revoked_at"]
        ok(await api.client.delete(f"/v1/keys/{theirs['id']}?tenant=other"))  # again changes nothing
        problem(await client.get("/v1/jobs"), 401, "unauthenticated")
    async with api.as_key(successor["key"]) as client:
        seen = ok(await client.get("/v1/audit"))["data"]
    acts = ["key.revoked", "key.rotated", "key.created", "key.created"]
    assert [entry["action"] for entry in seen] == acts
    assert {(entry["key_id"], entry["details"]["tenant"]) for entry in seen} == {("bootstrap", "other")}
    ours = ok(await api.client.get("/v1/audit"))["data"]
    assert [(entry["action"], entry["object_id"]) for entry in ours] == [(e["action"], e["object_id"]) for e in seen]
    assert ok(await api.client.get("/v1/keys"))["data"] == []


async def test_no_other_key_reaches_into_another_tenant(api: Api) -> None:
    theirs = await make_key(api, scopes=["jobs:read"], tenant="other")
    admin = await make_key(api, scopes=["keys:admin", "jobs:read"])
    async with api.as_key(admin["key"]) as client:
        for response in (
            await client.get("/v1/keys?tenant=other"),
            await client.delete(f"/v1/keys/{theirs['id']}?tenant=other"),
            await client.post(f"/v1/keys/{theirs['id']}/rotate?tenant=other"),
        ):
            problem(response, 403, "missing-scope")
        problem(await client.delete(f"/v1/keys/{theirs['id']}?tenant=default"), 404, "not-found")
        problem(await client.delete(f"/v1/keys/{theirs['id']}?tenant=Not%20One"), 422, "invalid-request")
    async with api.as_key(theirs["key"]) as client:
        ok(await client.get("/v1/jobs"))


async def test_a_made_secret_is_kept_so_that_keys_outlive_a_restart(settings: Settings) -> None:
    settings = settings.model_copy(update={"secret": None})
    async with started(settings) as api:
        key = (await make_key(api))["key"]
    assert (settings.resolved_home / "secret").stat().st_mode & 0o777 == 0o600
    async with started(settings) as api, api.as_key(key) as client:
        ok(await client.get("/v1/jobs"))
