"""Forks over HTTP: the same spec with changes, pinned to what the first job found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.db.engine import tenant_session
from app.jobs.fork import Reuse, merge, reuse_of
from app.ui import job_form
from core.contract.block_files import CAPTURED_INPUTS_FILES
from core.contract.spec import JobSpec
from core.ledger.tables import Job
from quant_experts.spec.methods import METHOD_VERSION
from tests.app.conftest import Api, job_body, ok, problem


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
        "method_version": METHOD_VERSION,
    }
    assert child["labels"] == {"team": "vision", "run": "2"}
    assert (child["accept_if"], child["name"], child["forked_from"]) == (None, "first", parent["id"])
    assert (child["model"], child["calibration"]) == (parent["model"], parent["calibration"])
    assert (child["resolved"]["model_commit"], child["resolved"]["dataset_commit"]) == ("c0", "d0")
    events = ok(await api.client.get(f"/v1/jobs/{child['id']}/events"))["data"]
    assert events[0]["data"]["forked_from"] == parent["id"]


async def test_a_job_from_before_versions_and_its_forks_keep_their_defaults(api: Api) -> None:
    parent = await api.create_job(options={"seed": 3})
    api.execute("ALTER TABLE jobs DISABLE TRIGGER guard_job")  # the spec of a job never changes
    api.execute("UPDATE jobs SET spec = spec #- '{options,method_version}'")
    api.execute("ALTER TABLE jobs ENABLE TRIGGER guard_job")
    assert ok(await api.client.get(f"/v1/jobs/{parent['id']}"))["options"]["method_version"] is None
    child = await fork(api, parent["id"], options={"seed": 4})
    assert (child["options"]["method_version"], child["options"]["seed"]) == (None, 4)
    newest = await fork(api, parent["id"], options={"method_version": METHOD_VERSION})
    assert newest["options"]["method_version"] == METHOD_VERSION


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


def leave_blocks(api: Api, job_id: str, blocks: int, *, calls_only: bool = False) -> None:
    for block in range(blocks):
        names = [
            *(CAPTURED_INPUTS_FILES if block == 0 else ()),
            *(() if calls_only else (f"block-{block}.safetensors",)),
        ]
        api.execute(
            "INSERT INTO layers (job_id, block, attempt, seconds, report, files) VALUES (%s, %s, 1, 1, '{}', %s)",
            [job_id, block, json.dumps([{"name": name} for name in names])],
        )


async def found_of(api: Api, job_id: str, **changes: Any) -> Reuse:
    async with tenant_session(api.service.sessions, lambda: "default") as session:
        parent = await session.get_one(Job, job_id)
        spec = JobSpec.model_validate(merge(parent.spec, changes))
        return await reuse_of(session, parent=parent, spec=spec)


async def test_what_a_fork_takes_over_is_known_before_it_is_made(api: Api) -> None:
    job = (await api.create_job(options={"seed": 3}))["id"]
    assert await found_of(api, job) == Reuse(calibration=False, blocks=0, changed=[], gone=True)
    leave_blocks(api, job, 5)
    same = {"accept_if": {"max_kl": 1.0}, "labels": {"a": "b"}, "name": "n", "timeout_s": 60}
    assert await found_of(api, job, **same) == Reuse(calibration=True, blocks=5, changed=[], gone=False)
    other = await found_of(api, job, scheme="W4A8", options={"experts": 2})
    assert other == Reuse(calibration=True, blocks=0, changed=["options.experts", "scheme"], gone=False)
    for rows in ({"seed": 4}, {"samples": 9}, {"vision": "quantize"}):
        assert not (await found_of(api, job, options=rows)).calibration
    assert not (await found_of(api, job, calibration={"split": "test"})).calibration
    assert not (await found_of(api, job, model={"revision": "v2"})).calibration


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"options": {"important_channels": 32, "samples": 128, "seed": 0, "refine": "none"}}, []),
        ({"options": {"adapter_dtype": "int8", "vision": "keep", "smoothquant_alpha": 0.5}}, []),
        ({"options": {"smoothing": "rotation", "rounding": "gptq", "reconstruction": "qe"}}, []),
        ({"method": "balanced", "calibration": {"split": "train"}, "model": {"revision": None}}, []),
        ({"options": {"sensitive": {"share": 0.1, "weight_bits": 8}}}, []),
        ({"model": {"revision": "c0ffee"}}, []),  # the commit that the branch stood for
        ({"options": {"sensitive": {"share": 0.1, "weight_bits": 6}}}, ["options.sensitive"]),
        ({"options": {"experts": 9, "rounding": "rtn"}}, ["options.experts", "options.rounding"]),
        ({"options": {"group_size": 128}}, ["options.group_size"]),  # left out: 128 where it divides
        ({"options": {"experts": 8}}, ["options.experts"]),  # left out: what fits
        ({"method": "qe-gptq"}, ["method"]),
        ({"method": "qe-gptq", "options": {"rounding": "gptq"}}, ["method"]),
        ({"model": {"revision": "v2"}}, ["model"]),
    ],
)
async def test_a_change_is_what_is_another_job_not_what_is_written_out(
    api: Api, changes: dict[str, Any], changed: list[str]
) -> None:
    job = (await api.create_job(options={"sensitive": {"share": 0.1}}))["id"]
    api.execute("""UPDATE jobs SET progress = '{"model_commit": "c0ffee"}'""")
    leave_blocks(api, job, 5)
    found = await found_of(api, job, **changes)
    assert (found.changed, found.blocks) == (changed, 0 if changed else 5)


async def test_a_fork_that_writes_the_commit_out_keeps_to_it(api: Api) -> None:
    parent = await api.create_job()
    api.execute("""UPDATE jobs SET progress = '{"model_commit": "c0ffee", "model_fingerprint": "f0"}'""")
    child = await fork(api, parent["id"], model={"revision": "c0ffee"})
    assert (child["model"]["revision"], child["resolved"]["model_commit"]) == ("c0ffee", "c0ffee")
    other = await fork(api, parent["id"], model={"id": "acme/other", "revision": "c0ffee"})
    assert other["resolved"]["model_commit"] is None


async def test_a_job_that_succeeded_leaves_its_calibration(api: Api) -> None:
    job = (await api.create_job())["id"]
    leave_blocks(api, job, 2, calls_only=True)
    assert await found_of(api, job) == Reuse(calibration=True, blocks=0, changed=[], gone=False)


@pytest.mark.parametrize(
    ("fields", "patch"),
    [
        ({}, {}),
        ({"scheme": "W4A8"}, {"scheme": "W4A8"}),
        ({"options.experts": "", "options.seed": "7"}, {"options": {"experts": None, "seed": 7}}),
        ({"labels": "run=2"}, {"labels": {"team": None, "run": "2"}}),
        ({"accept_if.max_kl": ""}, {"accept_if": None}),
        ({"accept_if.max_kl": "0.25", "name": "2026"}, {"accept_if": {"max_kl": 0.25}, "name": "2026"}),
        ({job_form.HUB: "acme/others"}, {"calibration": {"dataset": "acme/others"}}),
        ({job_form.HUB: "", job_form.UPLOADED: "ds_1"}, {"calibration": {"dataset": "ds_1"}}),
        ({"model.id": ""}, {"model": {"id": None}}),
    ],
)
def test_a_forms_changes_are_a_merge_patch(fields: dict[str, str], patch: dict[str, Any]) -> None:
    """Fields that the form does not have, like ``smoothing``, are not in it."""
    options = {"experts": 4, "smoothing": "awq"}
    body = job_body(options=options, labels={"team": "a"}, accept_if={"max_kl": 0.1}, name="n")
    spec = JobSpec.model_validate(body).model_dump(mode="json")
    values = job_form.values_of_spec(spec) | fields
    assert job_form.changes_of(values, spec) == patch


def test_numbers_of_a_form_arrive_as_numbers_and_names_as_names() -> None:
    values = {"name": "2026", "accept_if.max_kl": "0.1", "options.group_size": "channel", "target.max_kl": "1e-3"}
    body = job_form.body_of(values)
    assert body == {
        "name": "2026",
        "accept_if": {"max_kl": 0.1},
        "options": {"group_size": "channel"},
        "target": {"max_kl": 0.001},
    }
