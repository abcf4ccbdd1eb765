"""Datasets that expire: what the owner says, what is refused afterwards, and what is still told of them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.settings import Settings
from tests.app.conftest import Api, job_body, ok, problem, started
from tests.app.test_datasets import jsonl, row
from worker.keeper import sweep
from worker.ledger.connection import connect

ROWS = jsonl(*(row(text=f"row {number}") for number in range(3)))


def later(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


async def uploaded(api: Api, **fields: str) -> dict[str, Any]:
    answer: dict[str, Any] = ok(
        await api.client.post("/v1/datasets", files={"file": ("rows.jsonl", ROWS)}, data=fields), 201
    )
    return answer


async def change(api: Api, dataset: str, expires_at: str | None) -> Any:
    return ok(await api.client.patch(f"/v1/datasets/{dataset}", json={"expires_at": expires_at}))


def expire(api: Api, dataset: str) -> None:
    """As time does it."""
    api.execute("UPDATE datasets SET expires_at = clock_timestamp() - interval '1 second' WHERE id = %s", [dataset])


def swept(api: Api) -> int:
    """As the keeper does it."""
    with connect(api.settings.database_url or "") as connection:
        return sweep.expire_datasets(connection, api.service.storage)


def on(dataset: str) -> dict[str, Any]:
    return job_body(calibration={"dataset": dataset})


async def test_the_end_is_said_with_the_upload_put_off_and_taken_back(api: Api) -> None:
    end = later(days=3)
    dataset = await uploaded(api, expires_at=end)
    assert (dataset["status"], datetime.fromisoformat(dataset["expires_at"])) == ("ready", datetime.fromisoformat(end))
    assert (await change(api, dataset["id"], later(days=9)))["expires_at"] > dataset["expires_at"]
    assert (await change(api, dataset["id"], None))["expires_at"] is None
    assert ok(await api.client.get(f"/v1/datasets/{dataset['id']}"))["expires_at"] is None
    entries = ok(await api.client.get("/v1/audit?action=dataset.changed"))["data"]
    assert [entry["details"]["expires_at"] is None for entry in entries] == [True, False]
    assert (await uploaded(api))["expires_at"] is None


async def test_an_upload_in_parts_may_expire_too(api: Api) -> None:
    upload = ok(await api.client.post("/v1/datasets/uploads", json={}), 201)["id"]
    ok(await api.client.put(f"/v1/datasets/uploads/{upload}/parts/1", content=ROWS))
    whole = {"sha256": hashlib.sha256(ROWS).hexdigest(), "expires_at": later(hours=1)}
    made = ok(await api.client.post(f"/v1/datasets/uploads/{upload}/complete", json=whole), 201)
    assert datetime.fromisoformat(made["expires_at"]) == datetime.fromisoformat(whole["expires_at"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("2020-01-01T00:00:00Z", "is over"),
        ("9999-12-31T23:59:59-14:00", "more than a hundred years away: name a time to come"),
        ("0001-01-01T00:00:00+14:00", "is over"),
        ("tomorrow", "write a date and time with an offset"),
        ("2030-01-01T00:00:00", "timezone"),
        ("1893456000", "write a date and time with an offset"),
        ("1.893456e9", "write a date and time with an offset"),
    ],
)
async def test_a_time_that_is_over_or_none_is_refused_everywhere(api: Api, given: str, says: str) -> None:
    dataset = (await uploaded(api))["id"]
    files = {"file": ("rows.jsonl", ROWS)}
    for response in (
        await api.client.post("/v1/datasets", files=files, data={"expires_at": given}),
        await api.client.patch(f"/v1/datasets/{dataset}", json={"expires_at": given}),
    ):
        (error,) = problem(response, 422, "invalid-request")["errors"]
        assert error["pointer"] == "/expires_at"
        assert says in error["detail"]
    problem(await api.client.patch(f"/v1/datasets/{dataset}", json={}), 422, "invalid-request")
    assert api.execute("SELECT count(*) FROM datasets") == [(1,)]


async def test_after_its_end_no_job_fork_retry_or_plan_gets_it_and_each_is_told_why(api: Api) -> None:
    dataset = (await uploaded(api))["id"]
    job = ok(await api.client.post("/v1/jobs", json=on(dataset)), 201)["id"]
    ok(await api.client.post(f"/v1/jobs/{job}/cancel"))
    expire(api, dataset)
    comparison = {**on(dataset), "candidates": [{"scheme": "W4A6"}, {"scheme": "W4A8"}]}
    del comparison["scheme"]
    for response in (
        await api.client.post("/v1/jobs", json=on(dataset)),
        await api.client.post(f"/v1/jobs/{job}/retry"),
        await api.client.post(f"/v1/jobs/{job}/fork", json={"scheme": "W4A8"}),
        await api.client.post("/v1/comparisons", json=comparison),
    ):
        body = problem(response, 422, "dataset-expired")
        assert body["errors"][0]["pointer"] == "/calibration/dataset"
        assert f"{dataset} expired at 20" in body["detail"]
        assert "upload the rows again" in body["detail"]
    (api.settings.model_root or api.settings.home).joinpath("tiny", "config.json").write_text("{}")
    plan = ok(await api.client.post("/v1/jobs:plan", json={**on(dataset), "model": {"id": "local/tiny"}}))
    assert "dataset_expired" in [refusal["code"] for refusal in plan["refusals"]]
    problem(await api.client.get(f"/v1/datasets/{dataset}/rows"), 404, "not-found")
    assert ok(await api.client.get(f"/v1/datasets/{dataset}"))["status"] == "expired"
    # Its bytes are still there: the owner may put the end off, and everything goes on.
    assert (await change(api, dataset, later(days=1)))["status"] == "ready"
    ok(await api.client.post(f"/v1/jobs/{job}/retry"))


async def test_the_keeper_removes_the_bytes_when_no_unfinished_job_needs_them(api: Api) -> None:
    dataset = await uploaded(api)
    name = dataset["id"]
    job = ok(await api.client.post("/v1/jobs", json=on(name)), 201)["id"]
    expire(api, name)
    assert swept(api) == 0  # the job waits
    api.start(job)
    assert swept(api) == 0  # it runs
    assert list(api.service.storage.keys("datasets"))
    api.end(job, "failed", {"code": "internal", "message": "", "retryable": True})
    assert ok(await api.client.get("/v1/usage"))["stored"]["datasets"] == dataset["bytes"]
    assert swept(api) == 1
    assert swept(api) == 0
    assert list(api.service.storage.keys("datasets")) == []
    assert ok(await api.client.get("/v1/usage"))["stored"]["datasets"] == 0
    (entry,) = ok(await api.client.get(f"/v1/audit?object_id={name}&action=dataset.expired"))["data"]
    assert (entry["key_id"], entry["details"]["bytes"]) == ("keeper", dataset["bytes"])
    assert problem(await api.client.post("/v1/jobs", json=on(name)), 422, "dataset-expired")
    response = await api.client.patch(f"/v1/datasets/{name}", json={"expires_at": later(days=1)})
    assert "expired at" in problem(response, 422, "dataset-expired")["detail"]
    assert [each["status"] for each in ok(await api.client.get("/v1/datasets"))["data"]] == ["expired"]
    api.execute("UPDATE datasets SET expires_at = clock_timestamp() - interval '31 days'")
    swept(api)
    problem(await api.client.get(f"/v1/datasets/{name}"), 404, "not-found")


async def test_a_dataset_that_a_job_is_just_being_made_of_is_left_for_the_next_time(api: Api) -> None:
    dataset = (await uploaded(api))["id"]
    expire(api, dataset)
    with connect(api.settings.database_url or "") as creating, creating.transaction():
        creating.execute("SELECT 1 FROM datasets WHERE id = %s FOR KEY SHARE", (dataset,))
        assert swept(api) == 0
    assert swept(api) == 1


async def test_bytes_that_a_killed_keeper_left_are_found_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = (await uploaded(api))["id"]
    expire(api, dataset)

    def killed(_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(api.service.storage), "delete", lambda self, key: killed(key))
        with pytest.raises(KeyboardInterrupt):
            swept(api)
    assert list(api.service.storage.keys("datasets"))
    with connect(api.settings.database_url or "") as connection:
        assert sweep.drop_unnamed_uploads(connection, api.service.storage, hours=0) == 1
    assert list(api.service.storage.keys("datasets")) == []


async def test_the_operator_may_say_how_long_uploads_live_that_do_not_say_it(settings: Settings) -> None:
    async with started(settings.model_copy(update={"dataset_ttl": 3600})) as api:
        assert later(minutes=59) < (await uploaded(api))["expires_at"].replace("Z", "+00:00") < later(minutes=61)
        assert (await uploaded(api, expires_at=later(days=9)))["expires_at"] > later(days=8)
