"""The user's own task over HTTP: its dataset is the tenant's and held by the job, and the service bounds its size."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.ui import job_form
from core.contract.spec import JobSpec
from core.settings import Settings
from tests.app.conftest import BOOTSTRAP_KEY, Api, job_body, ok, problem, started
from tests.app.test_dashboard import browser, sign_in  # noqa: F401 -- a fixture
from tests.app.test_dataset_expiry import expire, on, swept, uploaded
from tests.app.test_plans import api as with_model  # noqa: F401 -- a fixture
from tests.app.test_plans import tiny  # noqa: F401 -- a fixture
from tests.planning.big import write_72b

NOWHERE = f"ds_{'0' * 32}"


def evaluated(calibration: str, task: str | None, **fields: Any) -> dict[str, Any]:
    return {**on(calibration), "evaluation": {"dataset": task, **fields}}


async def test_the_dataset_of_a_task_is_the_tenants_own_and_is_held_like_that_of_the_calibration(api: Api) -> None:
    calibration, task = [(await uploaded(api))["id"] for _ in range(2)]
    other = ok(await api.client.post("/v1/keys", json={"name": "b", "scopes": ["jobs:write"], "tenant": "other"}), 201)
    async with api.as_key(other["key"]) as stranger:
        body = job_body(evaluation={"dataset": task})
        refused = problem(await stranger.post("/v1/jobs", json=body), 422, "dataset-not-found")
        assert refused["errors"][0]["pointer"] == "/evaluation/dataset"
        comparison = {**body, "candidates": [{"scheme": "W4A6"}, {"scheme": "W4A8"}]}
        del comparison["scheme"]
        problem(await stranger.post("/v1/comparisons", json=comparison), 422, "dataset-not-found")
    missing = problem(await api.client.post("/v1/jobs", json=evaluated(calibration, NOWHERE)), 422, "dataset-not-found")
    assert missing["errors"] == [
        {"pointer": "/evaluation/dataset", "detail": f"no dataset {NOWHERE!r}: upload it with POST /v1/datasets"}
    ]

    job = ok(await api.client.post("/v1/jobs", json=evaluated(calibration, task, rows=8)), 201)
    assert job["evaluation"] == {
        "dataset": task, "split": "train", "rows": 8, "max_new_tokens": 64, "original": True
    }  # fmt: skip
    for dataset in (calibration, task):
        assert job["id"] in problem(await api.client.delete(f"/v1/datasets/{dataset}"), 409, "dataset-in-use")["detail"]
    expire(api, task)
    assert swept(api) == 0  # the job waits
    api.start(job["id"])
    problem(await api.client.delete(f"/v1/datasets/{task}"), 409, "dataset-in-use")
    assert swept(api) == 0  # it runs
    api.end(job["id"], "failed", {"code": "internal", "message": "", "retryable": True})
    for response in (
        await api.client.post(f"/v1/jobs/{job['id']}/retry"),
        await api.client.post(f"/v1/jobs/{job['id']}/fork", json={"scheme": "W4A8"}),
        await api.client.post("/v1/jobs", json=evaluated(calibration, task)),
    ):
        assert problem(response, 422, "dataset-expired")["errors"][0]["pointer"] == "/evaluation/dataset"
    assert swept(api) == 1
    fork = ok(await api.client.post(f"/v1/jobs/{job['id']}/fork", json={"evaluation": {"dataset": None}}), 201)
    assert (fork["evaluation"]["dataset"], fork["evaluation"]["rows"]) == (None, 8)
    without = ok(await api.client.post(f"/v1/jobs/{job['id']}/fork", json={"evaluation": None}), 201)
    assert without["evaluation"] is None


async def test_the_service_bounds_rows_and_tokens(settings: Settings) -> None:
    bounded = settings.model_copy(update={"max_evaluation_rows": 16, "max_evaluation_tokens": 32})
    async with started(bounded) as api:
        task = {"rows": 16, "max_new_tokens": 32}
        ok(await api.client.post("/v1/jobs", json=job_body(evaluation=task)), 201)
        for field, asked, most in (("rows", 17, 16), ("max_new_tokens", 33, 32)):
            wrong = {**task, field: asked}
            answer = problem(await api.client.post("/v1/jobs", json=job_body(evaluation=wrong)), 422, "invalid-request")
            assert answer["errors"] == [
                {
                    "pointer": f"/evaluation/{field}",
                    "detail": f"evaluation: {field} is {asked}, and this service takes at most {most}",
                }
            ]
        problem(
            await api.client.post("/v1/jobs", json=job_body(accept_if={"min_exact_match": 0.9})), 422, "invalid-request"
        )


async def test_a_plan_counts_the_replies_refuses_what_is_not_there_and_binds_its_job(with_model: Api) -> None:  # noqa: F811
    api, local = with_model, {"model": {"id": "local/tiny"}}
    calibration, task = [(await uploaded(api))["id"] for _ in range(2)]

    async def planned(**fields: Any) -> Any:
        return ok(await api.client.post("/v1/jobs:plan", json={**on(calibration), **local, **fields}))

    plain, with_task, longer = [
        await planned(**fields)
        for fields in ({}, {"evaluation": {"dataset": task}}, {"evaluation": {"dataset": task, "max_new_tokens": 640}})
    ]
    assert "evaluation_sha256" in with_task["resolved"]
    assert with_task["evaluation"]["dataset"] == task
    assert len({each["digest"] for each in (plain, with_task, longer)}) == 3
    likely = [each["estimate"]["placements"][0]["seconds"]["likely"] for each in (plain, with_task, longer)]
    assert likely == sorted(likely)
    refused = await planned(evaluation={"dataset": NOWHERE, "rows": 32})
    assert [(each["code"], each["pointer"]) for each in refused["refusals"]] == [
        ("dataset_not_found", "/evaluation/dataset")
    ]
    body = {**evaluated(calibration, task), **local, "plan": with_task["digest"]}
    other = problem(
        await api.client.post("/v1/jobs", json={**body, "evaluation": {"dataset": task, "rows": 4}}),
        422,
        "plan-mismatch",
    )
    assert other["errors"] == [{"pointer": "/evaluation", "detail": "differs from the plan"}]
    ok(await api.client.post("/v1/jobs", json=body), 201)
    kept = ok(await api.client.get(f"/v1/plans/{with_task['digest']}"))
    assert kept["evaluation"] == with_task["evaluation"]
    # Of a large model the original alone is more than a worker that can do everything else has.
    root = api.settings.model_root
    assert root is not None
    write_72b(root / "big")
    api.execute(
        "INSERT INTO workers (id, host, device, memory_bytes, device_memory_bytes) VALUES ('w1', 'h', %s, %s, %s)",
        ["NVIDIA H100", 200 << 30, 80 << 30],
    )
    big = {**on(calibration), "model": {"id": "local/big"}}
    fitting = ok(await api.client.post("/v1/jobs:plan", json={**big, "evaluation": {"original": False}}))
    assert "insufficient_memory" not in [each["code"] for each in fitting["refusals"]]
    answer = problem(await api.client.post("/v1/jobs", json={**big, "evaluation": {}}), 422, "insufficient-memory")
    assert "(generating), NVIDIA H100 has" in answer["detail"]
    assert "with original false the checkpoint alone is scored" in answer["detail"]


@pytest.mark.parametrize(
    ("fields", "patch"),
    [
        ({}, {}),
        ({"evaluation.rows": "4"}, {"evaluation": {"rows": 4}}),
        ({job_form.TASK: ""}, {"evaluation": None, "accept_if": {"min_exact_match": None}}),
        ({job_form.TASK: job_form.HELD_OUT}, {"evaluation": {"dataset": None}}),
        ({job_form.TASK_HUB: "acme/task"}, {"evaluation": {"dataset": "acme/task"}}),
        ({"evaluation.original": "no"}, {"evaluation": {"original": False}}),
    ],
)
def test_a_task_in_a_form_changes_as_it_is_meant(fields: dict[str, str], patch: dict[str, Any]) -> None:
    body = job_body(evaluation={"dataset": f"ds_{1:032}"}, accept_if={"min_exact_match": 0.9, "max_kl": 1.0})
    spec = JobSpec.model_validate(body).model_dump(mode="json")
    if not fields.get(job_form.TASK, "x"):
        fields = {**fields, "accept_if.min_exact_match": ""}
    assert job_form.changes_of(job_form.values_of_spec(spec) | fields, spec) == patch
    again = job_form.body_of(job_form.values_of_spec(spec))
    assert JobSpec.model_validate(again).evaluation == JobSpec.model_validate(body).evaluation


async def test_the_page_has_the_replies_side_by_side_and_escapes_them(
    browser: httpx.AsyncClient,  # noqa: F811
    api: Api,
) -> None:
    interval = {"value": 0.875, "low": 0.719, "high": 0.95}
    reply = {"row": 1, "question": "<b>what?</b>", "reference": "a & b", "full": "<script>1</script>", "quantized": "b",
             "scores_full": {"exact_match": 0.0}, "scores_quantized": {"exact_match": 1.0}}  # fmt: skip
    score = {"name": "exact_match", "rows": 32, "full": interval, "quantized": interval, "difference": None}
    summary = {"kl": 0.1, "effective_bits": 4.2,
               "evaluation": {"sentence": "It says.", "rows": 32, "scores": [score], "replies": [reply]}}  # fmt: skip
    job = (await api.create_job(evaluation={}))["id"]
    api.start(job)
    api.end(job, "succeeded")
    api.execute("UPDATE jobs SET summary = %s WHERE id = %s", [json.dumps(summary), job])
    await sign_in(browser, BOOTSTRAP_KEY)
    page = (await browser.get(f"/jobs/{job}")).text
    assert "Your own task" in page
    assert "87.5 %" in page
    assert "&lt;script&gt;1&lt;/script&gt;" in page
    assert "<script>1" not in page
    assert "&lt;b&gt;what?" in page
