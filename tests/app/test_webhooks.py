"""Webhooks over HTTP: made, changed, rotated, removed; and what is queued for them with each event."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from core.secret import BadSeal
from core.settings import Settings
from tests.app.conftest import Api, ok, problem, served, started
from worker.ledger import attempts as ledger
from worker.ledger.connection import connect

URL = "https://hooks.example.com/qe"


async def make(api: Api, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = ok(await api.client.post("/v1/webhooks", json={"url": URL, **changes}), 201)
    return made


async def deliveries(api: Api, webhook: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    response = await api.client.get(f"/v1/webhooks/{webhook['id']}/deliveries", params=query)
    found: list[dict[str, Any]] = ok(response)["data"]
    return found


async def test_a_secret_is_shown_once_and_sealed_at_rest(api: Api) -> None:
    response = await api.client.post("/v1/webhooks", json={"url": URL})
    made = ok(response, 201)
    assert made["secret"].startswith("whsec_")
    assert response.headers["cache-control"] == "no-store"
    seen = ok(await api.client.get(response.headers["location"]))
    assert "secret" not in seen
    assert seen["event_types"] == ["job.cancelled", "job.failed", "job.succeeded"]
    ((sealed,),) = api.execute("SELECT secret FROM webhooks")
    assert made["secret"].removeprefix("whsec_") not in str(sealed)
    assert api.service.seal.open(sealed, row=made["id"]) == made["secret"]


async def test_a_sealed_secret_opens_for_its_own_row_only(api: Api) -> None:
    await make(api)
    ((sealed,),) = api.execute("SELECT secret FROM webhooks")
    with pytest.raises(BadSeal, match="wh_other cannot be opened: has QE_SECRET changed"):
        api.service.seal.open(sealed, row="wh_other")


async def test_the_address_of_a_chat_is_a_secret_of_its_own(api: Api) -> None:
    made = await make(api, format="slack", url="https://hooks.slack.com/services/T0/B0/hush")
    assert ok(await api.client.get("/v1/audit"))["data"][0]["details"] == {"url": "https://hooks.slack.com/…"}
    changed = ok(await api.client.patch(f"/v1/webhooks/{made['id']}", json={"format": "teams"}))
    assert (made["format"], changed["format"]) == ("slack", "teams")
    assert (await make(api))["format"] == "standard"


@pytest.mark.parametrize("url", ["http://example.com/", "https://user@example.com/", "https://127.1/", "https://db/"])
async def test_a_url_that_could_mean_our_own_network_is_refused(api: Api, url: str) -> None:
    refused = problem(await api.client.post("/v1/webhooks", json={"url": url}), 422, "webhook-url-refused")
    assert refused["errors"][0]["pointer"] == "/url"
    made = await make(api)
    problem(await api.client.patch(f"/v1/webhooks/{made['id']}", json={"url": url}), 422, "webhook-url-refused")


@pytest.mark.parametrize(
    "body",
    [
        {"event_types": []},
        {"event_types": ["job.block"]},
        {"event_types": "job.failed"},
        {"url": None},
        {"url": "x" * 3000},
        {"url": "https://example.com/\ud800"},
        {"description": "a\x00b"},
        {"secret": "whsec_mine"},
    ],
)
async def test_a_bad_webhook_is_a_problem(api: Api, body: dict[str, Any]) -> None:
    content = json.dumps({"url": URL, **body})
    response = await api.client.post("/v1/webhooks", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    assert api.execute("SELECT count(*) FROM webhooks") == [(0,)]


async def test_the_terminal_event_of_a_job_queues_one_message_with_one_id(api: Api) -> None:
    first, second = await make(api), await make(api, event_types=["job.cancelled", "job.started"])
    await make(api, event_types=["job.failed"])
    job = await api.create_job(name="n", labels={"team": "vision"})
    ok(await api.client.post(f"/v1/jobs/{job['id']}/cancel"))
    (one,), (two,) = await deliveries(api, first), await deliveries(api, second)
    events = ok(await api.client.get(f"/v1/jobs/{job['id']}/events"))["data"]
    assert one["message_id"] == two["message_id"] == f"evt_{job['id'][4:]}_{events[-1]['seq']}"
    detail = ok(await api.client.get(f"/v1/webhooks/{first['id']}/deliveries/{one['id']}"))
    assert detail["payload"]["type"] == "job.cancelled"
    told = detail["payload"]["data"]["job"]
    assert (told["id"], told["status"], told["name"], told["labels"]) == (
        job["id"],
        "cancelled",
        "n",
        {"team": "vision"},
    )
    assert detail["log"] == []
    assert api.execute("SELECT count(*) FROM webhook_deliveries") == [(2,)]


async def test_an_event_that_is_rolled_back_queues_nothing(api: Api) -> None:
    await make(api, event_types=["job.failed"])
    job = await api.create_job()
    api.start(job["id"])
    with connect(api.settings.database_url or "") as connection:
        ref = ledger.AttemptRef(job["id"], 1)
        with connection.transaction(force_rollback=True):
            ledger.fail(connection, ref, code=ledger.FailureCode.INTERNAL, message="x")
        assert api.execute("SELECT count(*) FROM webhook_deliveries") == [(0,)]
        ledger.fail(connection, ref, code=ledger.FailureCode.INTERNAL, message="x")
    ((payload,),) = api.execute("SELECT payload FROM webhook_deliveries")
    assert payload["data"]["job"]["status"] == "failed"
    assert payload["data"]["event"]["error"]["code"] == "internal"


async def test_a_disabled_webhook_is_told_nothing_until_it_is_enabled(api: Api) -> None:
    made = await make(api)
    path = f"/v1/webhooks/{made['id']}"
    changed = ok(await api.client.patch(path, json={"status": "disabled", "description": "later"}))
    assert (changed["status"], changed["description"], changed["url"]) == ("disabled", "later", URL)
    assert changed["disabled_reason"]
    job = await api.create_job()
    ok(await api.client.post(f"/v1/jobs/{job['id']}/cancel"))
    assert await deliveries(api, made) == []
    problem(await api.client.post(f"{path}/ping"), 409, "webhook-disabled")
    assert ok(await api.client.patch(path, json={"status": "enabled"}))["disabled_reason"] is None
    ok(await api.client.post(f"{path}/ping"), 202)


async def test_a_message_is_sent_again_under_its_id(api: Api) -> None:
    made = await make(api)
    pinged = ok(await api.client.post(f"/v1/webhooks/{made['id']}/ping"), 202)
    api.execute(
        "UPDATE webhook_deliveries SET status = 'failed', due_at = NULL, finished_at = now(), step = 9, attempts = 10"
    )
    assert [each["id"] for each in await deliveries(api, made, status="failed")] == [pinged["id"]]
    again = ok(await api.client.post(f"/v1/webhooks/{made['id']}/deliveries/{pinged['id']}/redeliver"), 202)
    assert (again["status"], again["message_id"], again["attempts"]) == ("pending", pinged["message_id"], 10)
    assert api.execute("SELECT step FROM webhook_deliveries") == [(0,)]


async def test_a_rotated_secret_lives_beside_the_new_one_for_a_while(api: Api) -> None:
    made = await make(api)
    path = f"/v1/webhooks/{made['id']}/rotate-secret"
    rotated = ok(await api.client.post(path, json={"keep_previous_s": 600}))
    assert rotated["secret"] != made["secret"]
    assert rotated["previous_secret_until"] is not None
    ((current, previous),) = api.execute("SELECT secret, previous_secret FROM webhooks")
    opened = [api.service.seal.open(sealed, row=made["id"]) for sealed in (current, previous)]
    assert opened == [rotated["secret"], made["secret"]]
    at_once = ok(await api.client.post(path, json={"keep_previous_s": 0}))
    assert at_once["previous_secret_until"] is None
    assert api.execute("SELECT previous_secret FROM webhooks") == [(None,)]


async def test_a_removed_webhook_takes_its_deliveries_along(api: Api) -> None:
    made = await make(api)
    ok(await api.client.post(f"/v1/webhooks/{made['id']}/ping"), 202)
    assert (await api.client.delete(f"/v1/webhooks/{made['id']}")).status_code == 204
    problem(await api.client.get(f"/v1/webhooks/{made['id']}"), 404, "not-found")
    assert api.execute("SELECT count(*) FROM webhook_deliveries") == [(0,)]


async def test_a_tenant_has_a_bounded_number_of_webhooks(settings: Settings) -> None:
    async with started(settings.model_copy(update={"max_webhooks": 1})) as api:
        await make(api)
        problem(await api.client.post("/v1/webhooks", json={"url": URL}), 409, "too-many-webhooks")


async def test_webhooks_made_at_the_same_moment_are_bounded_too(settings: Settings) -> None:
    async with started(settings.model_copy(update={"max_webhooks": 2})) as api, served(api) as client:
        made = await asyncio.gather(*(client.post("/v1/webhooks", json={"url": URL}) for _ in range(12)))
        assert sorted(answer.status_code for answer in made) == [201] * 2 + [409] * 10
        assert api.execute("SELECT count(*) FROM webhooks") == [(2,)]
