"""Pushes over HTTP, by the client and on the command line: who may push what where, and with whose key."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from core.secret import BUCKETS, Seal, service_secret
from core.settings import Settings
from tests.app.conftest import Api, job_body, ok, problem, started
from tests.app.test_client_cli import Qe, network, qe  # noqa: F401 -- fixtures
from tests.app.test_keys import make_key
from worker.ledger.connection import connect
from worker.pushes import queue

HUB, BUCKET = {"to": "hub:team/model"}, {"to": "s3://models-of-the-team/a/b"}
KEY = {"access_key_id": "AKIA1", "secret_access_key": "hushhush"}


async def finished(api: Api, **changes: Any) -> str:
    job_id = str((await api.create_job(**changes))["id"])
    api.start(job_id)
    api.execute("UPDATE jobs SET artifact_bytes = 1 WHERE id = %s", [job_id])
    api.end(job_id, "succeeded")
    return job_id


async def set_keys(api: Api) -> None:
    ok(await api.client.put("/v1/hub-token", json={"token": "hf_ofthetenant"}))
    ok(await api.client.put("/v1/buckets/models-of-the-team", json=KEY))


async def test_a_key_of_a_bucket_is_sealed_shown_to_nobody_and_its_tenants_alone(api: Api) -> None:
    made = await api.client.put(
        "/v1/buckets/models-of-the-team", json={**KEY, "endpoint_url": "https://s3.example.com"}
    )
    listed = await api.client.get("/v1/buckets")
    assert [each["name"] for each in ok(listed)["data"]] == [ok(made)["name"]] == ["models-of-the-team"]
    ((sealed,),) = api.execute("SELECT sealed FROM buckets")
    assert (
        Seal(service_secret(api.settings), purpose=BUCKETS).open(sealed, row="default/models-of-the-team") == "hushhush"
    )
    audit = await api.client.get("/v1/audit")
    assert ok(audit)["data"][0]["action"] == "bucket.set"
    assert not [each for each in (made, listed, audit) if "hushhush" in each.text]
    theirs = (await make_key(api, scopes=["keys:admin", "jobs:write", "pushes:write"], tenant="other"))["key"]
    async with api.as_key(theirs) as other:
        assert ok(await other.get("/v1/buckets"))["data"] == []
        problem(await other.delete("/v1/buckets/models-of-the-team"), 404, "not-found")
        job = ok(await other.post("/v1/jobs", json=job_body()), 201)["id"]
        problem(await other.post(f"/v1/jobs/{job}/pushes", json=BUCKET), 409, "no-destination-key")
    assert (await api.client.delete("/v1/buckets/models-of-the-team")).status_code == 204
    problem(await api.client.delete("/v1/buckets/models-of-the-team"), 404, "not-found")


@pytest.mark.parametrize(
    "url", ["http://s3.example.com", "https://10.0.0.1", "https://minio", "https://s3.example.com/x"]
)
async def test_an_address_of_our_own_network_is_no_store(api: Api, url: str) -> None:
    refused = problem(
        await api.client.put("/v1/buckets/abc", json={**KEY, "endpoint_url": url}), 422, "endpoint-refused"
    )
    assert refused["errors"][0]["pointer"] == "/endpoint_url"


@pytest.mark.parametrize("name", ["UPPER", "a", "evil.com%2F", "x%3Fy"])
async def test_a_bucket_has_the_name_of_a_bucket(api: Api, name: str) -> None:
    assert (await api.client.put(f"/v1/buckets/{name}", json=KEY)).status_code in (404, 405, 422)
    assert api.execute("SELECT count(*) FROM buckets") == [(0,)]


async def test_a_push_is_made_seen_and_cancelled(api: Api) -> None:
    job_id = await finished(api)
    path = f"/v1/jobs/{job_id}/pushes"
    refused = problem(await api.client.post(path, json=HUB), 409, "no-destination-key")
    assert refused["errors"][0]["pointer"] == "/to"
    await set_keys(api)
    first = await api.client.post(path, json=HUB, headers={"Idempotency-Key": "once"})
    made = ok(first, 201)
    assert (made["status"], made["private"], made["export"], made["to"]) == ("waiting", True, None, HUB["to"])
    again = await api.client.post(path, json=HUB, headers={"Idempotency-Key": "once"})
    assert (ok(again, 201)["id"], again.headers["idempotency-replayed"]) == (made["id"], "true")
    problem(await api.client.post(path, json=HUB), 409, "push-in-progress")
    second = ok(await api.client.post(path, json=BUCKET), 201)
    assert [each["id"] for each in ok(await api.client.get(path))["data"]] == [second["id"], made["id"]]
    for _ in range(2):
        assert ok(await api.client.post(f"{path}/{made['id']}/cancel"))["status"] == "cancelled"
    entries = ok(await api.client.get("/v1/audit"))["data"]
    assert [entry["action"] for entry in entries][:3] == ["push.cancelled", "push.created", "push.created"]
    with connect(api.settings.database_url or "") as connection:
        due = queue.take_due(connection)
        assert due is not None
        queue.succeed(connection, due, {"url": BUCKET["to"]})
    seen = ok(await api.client.get(first.headers["location"].replace(made["id"], second["id"])))
    assert (seen["status"], seen["result"]["url"], seen["attempts"]) == ("succeeded", BUCKET["to"], 1)
    problem(await api.client.post(f"{path}/{second['id']}/cancel"), 409, "push-finished")
    # It came after the end: a stream of the job's events still ends.
    events = await api.client.get(f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}, timeout=10)
    assert "event: job.pushed" in events.text


@pytest.mark.parametrize(
    "to", ["hub:model", "hub:a/b/c", "s3://UPPER/x", "s3://ab/../x", "s3://abc//x", "gs://abc/x", "hub:a/b#x"]
)
async def test_a_destination_has_one_of_two_forms(api: Api, to: str) -> None:
    problem(await api.client.post(f"/v1/jobs/{await finished(api)}/pushes", json={"to": to}), 422, "invalid-request")


async def test_nothing_is_pushed_of_a_job_without_files_or_export(api: Api) -> None:
    await set_keys(api)
    job_id = await finished(api)
    path = f"/v1/jobs/{job_id}/pushes"
    refused = problem(await api.client.post(path, json={**HUB, "export": "dequantized"}), 422, "invalid-request")
    assert refused["errors"][0]["pointer"] == "/export"
    api.execute("UPDATE jobs SET artifact_bytes = NULL")
    problem(await api.client.post(path, json=HUB), 409, "nothing-to-push")
    failed = (await api.create_job())["id"]
    api.start(failed)
    api.end(failed, "failed")
    problem(await api.client.post(f"/v1/jobs/{failed}/pushes", json=HUB), 409, "nothing-to-push")


async def test_a_job_brings_its_pushes_and_both_are_made_or_neither(api: Api) -> None:
    await set_keys(api)
    push_to = [{**HUB, "export": "dequantized"}, BUCKET]
    refused = await api.client.post("/v1/jobs", json=job_body(push_to=push_to))
    assert problem(refused, 422, "invalid-request")["errors"][0]["pointer"] == "/push_to/0/export"
    assert api.execute("SELECT count(*) FROM jobs") == [(0,)]
    job = await api.create_job(push_to=push_to, exports=["dequantized"], method="gptq")
    pushes = ok(await api.client.get(f"/v1/jobs/{job['id']}/pushes"))["data"]
    assert [(each["to"], each["export"], each["status"]) for each in reversed(pushes)] == [
        (HUB["to"], "dequantized", "waiting"),
        (BUCKET["to"], None, "waiting"),
    ]
    assert api.execute("SELECT DISTINCT if_accepted FROM pushes") == [(True,)]
    assert api.execute("SELECT spec ? 'push_to' FROM jobs") == [(False,)]
    writer = (await make_key(api, scopes=["jobs:write"]))["key"]
    async with api.as_key(writer) as other:
        problem(await other.post("/v1/jobs", json=job_body(push_to=[BUCKET])), 403, "missing-scope")
        problem(await other.post(f"/v1/jobs/{job['id']}/pushes", json=BUCKET), 403, "missing-scope")


async def test_a_tenant_has_a_bound_of_pushes(api: Api) -> None:
    await set_keys(api)
    job_id = await finished(api)
    api.execute(
        "INSERT INTO pushes (id, tenant, job_id, destination, status) SELECT 'push_' || n, 'default', %s, n::text,"
        " 'waiting' FROM generate_series(1, 100) AS n",
        [job_id],
    )
    problem(await api.client.post(f"/v1/jobs/{job_id}/pushes", json=HUB), 429, "too-many-pushes")


async def test_on_the_command_line(qe: Qe, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO("hushhush\n"))
    code, out, err = await qe("buckets", "set", "models-of-the-team", "--access-key-id", "AKIA1", "--region", "eu-1")
    assert (code, out.split()[:3], "hushhush" in out + err) == (0, ["models-of-the-team", "AKIA1", "Amazon"], False)
    code, out, err = await qe(
        "submit", "--model", "acme/tiny-vl", "--calibration", "acme/rows", "--scheme", "W4A6", "--push-to", BUCKET["to"]
    )
    assert code == 0, err
    job_id = out.split()[0]
    code, out, _ = await qe("push", job_id)
    assert (code, out.split()[1:3]) == (0, ["waiting", BUCKET["to"]])
    assert (await qe("push", job_id, "--to", "s3://models-of-the-team/c", "--public", "--json"))[0] == 0
    pushes = [json.loads(line) for line in (await qe("push", job_id, "--json"))[1].splitlines()]
    assert [push["private"] for push in pushes] == [False, True]
    assert " cancelled " in (await qe("push", job_id, "--cancel", pushes[0]["id"]))[1]
    assert (await qe("push", job_id, "--wait"))[0] == 2
    assert (await qe("buckets", "list"))[1].startswith("models-of-the-team")
    assert (await qe("buckets", "delete", "models-of-the-team"))[0] == 0


async def test_every_job_is_to_be_a_run_where_a_tracking_server_is_set(settings: Settings) -> None:
    async with started(settings.model_copy(update={"mlflow_tracking_uri": "https://runs.example.com"})) as api:
        job = await api.create_job()
        (push,) = ok(await api.client.get(f"/v1/jobs/{job['id']}/pushes"))["data"]
        assert (push["to"], push["status"]) == ("mlflow", "waiting")
        problem(await api.client.post(f"/v1/jobs/{job['id']}/pushes", json={"to": "mlflow"}), 422, "invalid-request")
