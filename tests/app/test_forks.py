"""Forks over HTTP: the same spec with changes, pinned to what the first job found."""

from __future__ import annotations

from typing import Any

import pytest

from app.jobs.fork import merge
from tests.app.conftest import Api, ok, problem


async def fork(api: Api, job_id: str, status: int = 201, **changes: Any) -> dict[str, Any]:
    answer: dict[str, Any] = ok(await api.client.post(f"/v1/jobs/{job_id}/fork", json=changes), status)
    return answer


async def test_a_fork_is_the_same_job_but_for_what_was_changed(api: Api) -> None:
    parent = await api.create_job(
        name="first",
        labels={"team": "vision", "run": "1"},
        options={"seed": 3, "experts": 4},
        accept_if={"max_kl": 0.1},
    )
    api.execute("""UPDATE jobs SET progress = '{"model_commit": "c0", "dataset_commit": "d0", "group": "qkv"}'""")
    child = await fork(
        api,
        parent["id"],
        method="gptq",
        options={"experts": None, "group_size": 64},
        labels={"run": "2"},
        accept_if=None,
    )
    assert (child["method"], child["scheme"], child["status"]) == ("gptq", "W4A6", "queued")
    assert {name: value for name, value in child["options"].items() if value is not None} == {
        "seed": 3,
        "group_size": 64,
    }
    assert child["labels"] == {"team": "vision", "run": "2"}
    assert (child["accept_if"], child["name"], child["forked_from"]) == (None, None, parent["id"])
    assert (child["model"], child["calibration"]) == (parent["model"], parent["calibration"])
    assert (child["resolved"]["model_commit"], child["resolved"]["dataset_commit"]) == ("c0", "d0")
    events = ok(await api.client.get(f"/v1/jobs/{child['id']}/events"))["data"]
    assert events[0]["data"]["forked_from"] == parent["id"]


async def test_a_fork_to_another_model_or_dataset_is_pinned_to_nothing_of_the_first(api: Api) -> None:
    parent = await api.create_job()
    api.execute("""UPDATE jobs SET progress = '{"model_commit": "c0", "dataset_commit": "d0"}'""")
    other = await fork(api, parent["id"], model={"revision": "v2"})
    assert (other["resolved"]["model_commit"], other["resolved"]["dataset_commit"]) == (None, "d0")
    other = await fork(api, parent["id"], calibration={"dataset": "acme/others"})
    assert (other["resolved"]["model_commit"], other["resolved"]["dataset_commit"]) == ("c0", None)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"scheme": "W9A9"}, "/scheme"),
        ({"options": {"experts": "many"}}, "/options/experts"),
        ({"options": {"frobs": 1}}, "/options/frobs"),
        ({"model": None}, "/model"),
        ({"frob": 1}, "/frob"),
        ({"scheme": "auto"}, ""),
    ],
)
async def test_a_change_that_makes_no_job_is_refused_where_it_is(
    api: Api, changes: dict[str, Any], pointer: str
) -> None:
    parent = await api.create_job()
    answer = problem(await api.client.post(f"/v1/jobs/{parent['id']}/fork", json=changes), 422, "invalid-request")
    assert [error["pointer"] for error in answer["errors"]] == [pointer]


async def test_a_fork_is_made_once_per_idempotency_key(api: Api) -> None:
    parent = await api.create_job()
    path, headers = f"/v1/jobs/{parent['id']}/fork", {"Idempotency-Key": "k"}
    first = await api.client.post(path, json={"scheme": "W4A8"}, headers=headers)
    again = await api.client.post(path, json={"scheme": "W4A8"}, headers=headers)
    assert ok(again, 201)["id"] == ok(first, 201)["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    problem(await api.client.post(path, json={"scheme": "W3A8"}, headers=headers), 422, "idempotency-mismatch")


async def test_only_a_job_that_is_there_can_be_forked(api: Api) -> None:
    problem(await api.client.post("/v1/jobs/job_" + "0" * 32 + "/fork", json={}), 404, "not-found")


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": None, "e": 4}}, {"a": 1, "b": {"d": 3, "e": 4}}),
        ({"a": 1}, {"a": None}, {}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        (None, {"a": {"b": None}}, {"a": {}}),
    ],
)
def test_changes_merge_as_rfc_7396_says(target: Any, patch: Any, merged: Any) -> None:
    assert merge(target, patch) == merged
