"""Plans over HTTP: what they say, what they refuse, and that a job made of one runs exactly what was planned."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from tests.app.conftest import Api, job_body, ok, problem, started
from tests.app.test_datasets import parquet
from tests.models import make_model
from tests.planning.big import write_72b
from tests.planning.directory_hub import directory_hub
from tests.quant_experts.test_hub import COMMIT
from tests.rows import image_row, text_row, write_rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2_vl", tmp_path_factory.mktemp("plans") / "tiny")


@pytest.fixture
async def api(settings: Settings, tiny: Path) -> AsyncIterator[Api]:
    assert settings.model_root is not None
    shutil.rmtree(settings.model_root / "tiny")
    shutil.copytree(tiny, settings.model_root / "tiny")
    async with started(settings) as api:
        yield api


async def upload(api: Api, directory: Path, rows: int = 8) -> str:
    content = write_rows(directory / "rows.jsonl", [image_row(i) for i in range(rows)]).read_bytes()
    answer = ok(await api.client.post("/v1/datasets", files={"file": ("rows.jsonl", content)}), 201)
    return str(answer["id"])


async def plan(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = ok(await api.client.post("/v1/jobs:plan", json=body))
    return found


async def test_a_plan_says_what_the_job_would_take(api: Api, tmp_path: Path) -> None:
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)})
    found = await plan(api, body)
    assert found["accepted"]
    assert found["refusals"] == []
    assert found["resolved"]["model_fingerprint"]
    estimate = found["estimate"]
    assert estimate["blocks"] == 2
    assert {group["name"].rpartition(".")[2]: group["blocks"] for group in estimate["quantized"]} == {
        "qkv": 2,
        "o": 2,
        "gate_up": 2,
        "down": 2,
    }
    reasons = {kind["reason"].split(":")[0] for kind in estimate["skipped"]}
    assert reasons == {"output head", "embeddings", "vision tower"}
    assert estimate["size"]["exact"]
    assert len(estimate["size"]["blocks"]) == 2
    assert estimate["rows"]["rows"] == estimate["rows"]["rows_used"] == 8
    assert {placed["device"] for placed in estimate["placements"]} == {"cpu", "cuda"}
    for placed in estimate["placements"]:
        seconds = placed["seconds"]
        assert 0 < seconds["least"] < seconds["likely"] < seconds["most"]
        assert (seconds["basis"], seconds["blocks_measured"]) == ("shipped", 0)
    assert found["workers"] == []
    assert (await plan(api, body))["digest"] == found["digest"]


async def test_a_plan_warns_of_a_checkpoint_larger_than_the_model_and_a_job_is_made_of_it(
    api: Api, tmp_path: Path
) -> None:
    fixed = {"method_version": 2}  # ranks of a fixed size
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)}, options=fixed)
    found = await plan(api, body)
    (warning,) = found["warnings"]
    assert (found["accepted"], warning["code"]) == (True, "larger_than_model")
    assert warning["pointer"] == "/options/reconstruction"
    assert found["estimate"]["size"]["bytes_after"] > found["estimate"]["size"]["bytes_before"]
    assert ok(await api.client.get(f"/v1/plans/{found['digest']}"))["warnings"] == found["warnings"]
    job = ok(await api.client.post("/v1/jobs", json={**body, "plan": found["digest"]}), 201)
    assert job["plan"]["warnings"] == found["warnings"]
    advised = await plan(api, {**body, "options": {**fixed, "reconstruction": "none"}})
    assert advised["estimate"]["size"]["bytes_after"] < advised["estimate"]["size"]["bytes_before"]
    assert "larger_than_model" not in [warning["code"] for warning in advised["warnings"]]


async def test_rows_of_a_hub_model_are_counted_once_for_its_commit(
    api: Api, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with directory_hub(**{"models/acme/tiny-vl": tiny}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        body = job_body(model={"id": "acme/tiny-vl"}, calibration={"dataset": await upload(api, tmp_path)})
        rows = (await plan(api, body))["estimate"]["rows"]
        assert (rows["tokens_counted"], rows["rows"]) == (True, 8)
        asked = hub.requests
        assert (await plan(api, body))["estimate"]["rows"] == rows
        assert hub.requests - asked < asked  # headers again, no tokenizer


async def test_rows_of_a_parquet_dataset_are_counted_too(api: Api) -> None:
    content = parquet([text_row(0)] * 9)
    dataset = ok(await api.client.post("/v1/datasets", files={"file": ("rows.parquet", content)}), 201)["id"]
    rows = (await plan(api, job_body(model={"id": "local/tiny"}, calibration={"dataset": dataset})))["estimate"]["rows"]
    assert (rows["tokens_counted"], rows["rows"]) == (True, 9)
    assert rows["tokens_off_by"] == 1.03


async def test_a_plan_counts_rows_by_the_tokenizer_of_the_model(api: Api, tmp_path: Path) -> None:
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)})
    by_tokenizer = (await plan(api, body))["estimate"]["rows"]
    assert by_tokenizer["tokens_counted"]
    assert by_tokenizer["tokens_off_by"] < 1.1
    assert api.settings.model_root is not None
    (api.settings.model_root / "tiny" / "tokenizer.json").write_text("{")
    by_length = (await plan(api, body))["estimate"]["rows"]
    assert not by_length["tokens_counted"]
    assert by_length["tokens_off_by"] == 1.5
    assert by_length["tokens_per_row"] != by_tokenizer["tokens_per_row"]


async def test_a_plan_names_the_stack_of_every_block(api: Api, tmp_path: Path) -> None:
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)})
    body["options"] = {**body.get("options", {}), "vision": "quantize"}
    found = await plan(api, body)
    assert found["accepted"]
    blocks = found["estimate"]["size"]["blocks"]
    assert [(block["block"], block["stack"], block["index"]) for block in blocks] == [
        (0, "vision", 0),
        (1, "vision", None),
        (2, "language model", 0),
        (3, "language model", 1),
    ]
    assert found["estimate"]["size"]["exact"]
    kinds = found["estimate"]["quantized"]
    assert found["estimate"]["model_type"] == "qwen2_vl"
    assert {(kind["stack"], kind["behind"]) for kind in kinds if "merger" in kind["name"]} == {("vision", True)}
    assert [kind["name"].rpartition(".")[2] for kind in kinds if kind["stack"] == "language model"] == [
        "qkv",
        "o",
        "gate_up",
        "down",
    ]


async def test_a_72b_model_is_planned_over_http_in_two_seconds(api: Api) -> None:
    assert api.settings.model_root is not None
    write_72b(api.settings.model_root / "big")
    began = time.process_time()
    found = await plan(api, job_body(model={"id": "local/big"}, calibration={"dataset": "ds_" + "0" * 32}))
    assert time.process_time() - began < 2
    assert found["estimate"]["blocks"] == 80
    assert [refusal["code"] for refusal in found["refusals"]] == ["dataset_not_found"]


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"model": {"id": "local/absent"}}, "model_not_found", "/model/id"),
        ({"options": {"group_size": 128}}, "invalid_spec", "/options/group_size"),
        ({"options": {"sensitive": {"groups": ["mlp.dawn"]}}}, "invalid_spec", "/options/sensitive/groups/0"),
        (
            {"scheme": "W8A8", "options": {"sensitive": {"share": 0.5}}},
            "invalid_spec",
            "/options/sensitive/weight_bits",
        ),
        ({"options": {"budget": {"bits_per_weight": 4}}}, "invalid_spec", "/options/budget/bits_per_weight"),
        ({"scheme": "auto", "target": {"max_bytes": 1000}}, "invalid_spec", "/target/max_bytes"),
        ({"options": {"shared_rank": 0, "experts": 0}}, "invalid_spec", "/options/shared_rank"),
        ({"options": {"experts": 0, "refine": "all"}}, "invalid_spec", "/options/refine"),
    ],
)
async def test_every_reason_for_a_refusal_is_said_beforehand(
    api: Api, tmp_path: Path, changes: dict[str, Any], code: str, pointer: str
) -> None:
    dataset = await upload(api, tmp_path)
    found = await plan(api, job_body(**{"model": {"id": "local/tiny"}, "calibration": {"dataset": dataset}, **changes}))
    assert not found["accepted"]
    assert [(refusal["code"], refusal["pointer"]) for refusal in found["refusals"]] == [(code, pointer)]
    body = job_body(**{"model": {"id": "local/tiny"}, "calibration": {"dataset": dataset}, **changes})
    answer = problem(await api.client.post("/v1/jobs", json={**body, "plan": found["digest"]}), 422, "plan-refused")
    assert answer["errors"][0]["pointer"] == pointer


async def test_a_job_of_a_plan_runs_exactly_that(api: Api, tmp_path: Path) -> None:
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)})
    found = await plan(api, body)
    named = {**body, "name": "nightly", "labels": {"a": "b"}, "accept_if": {"max_kl": 1}, "plan": found["digest"]}
    job = ok(await api.client.post("/v1/jobs", json=named), 201)
    assert job["plan"]["digest"] == found["digest"]
    assert job["plan"]["bytes_after"] == found["estimate"]["size"]["bytes_after"]
    assert job["resolved"]["model_fingerprint"] == found["resolved"]["model_fingerprint"]
    other = {**body, "scheme": "W4A8", "options": {"seed": 1}, "plan": found["digest"]}
    answer = problem(await api.client.post("/v1/jobs", json=other), 422, "plan-mismatch")
    assert {error["pointer"] for error in answer["errors"]} == {"/scheme", "/options"}


async def test_a_kept_plan_says_all_that_a_job_of_it_needs(api: Api, tmp_path: Path) -> None:
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)})
    found = await plan(api, {**body, "options": {"seed": 3, "group_size": 64}, "name": "not a part of it"})
    kept = ok(await api.client.get(f"/v1/plans/{found['digest']}"))
    assert {name: kept[name] for name in ("accepted", "refusals", "resolved", "created_at", "expires_at")} == {
        name: found[name] for name in ("accepted", "refusals", "resolved", "created_at", "expires_at")
    }
    fields = {name: kept[name] for name in ("model", "calibration", "scheme", "method", "options", "target")}
    job = ok(await api.client.post("/v1/jobs", json={**fields, "plan": kept["digest"]}), 201)
    assert (job["options"]["seed"], job["options"]["group_size"], job["name"]) == (3, 64, None)
    for absent in ("0" * 64, "x", "%00"):
        problem(await api.client.get(f"/v1/plans/{absent}"), 404, "not-found")
    api.execute("UPDATE plans SET created_at = created_at - interval '25 hours'")
    problem(await api.client.get(f"/v1/plans/{found['digest']}"), 404, "not-found")


async def test_a_plan_is_void_when_the_models_files_have_changed(api: Api, tmp_path: Path) -> None:
    assert api.settings.model_root is not None
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)})
    found = await plan(api, body)
    config = api.settings.model_root / "tiny" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 1.0}))
    answer = problem(await api.client.post("/v1/jobs", json={**body, "plan": found["digest"]}), 409, "plan-outdated")
    assert answer["errors"][0]["pointer"] == "/model/id"
    assert (await plan(api, body))["digest"] != found["digest"]


async def test_a_plan_lives_a_day_and_belongs_to_its_tenant(api: Api, tmp_path: Path) -> None:
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)})
    found = await plan(api, body)
    other = ok(await api.client.post("/v1/keys", json={"name": "b", "scopes": ["jobs:write"], "tenant": "other"}), 201)
    planned = {**body, "plan": found["digest"]}
    async with api.as_key(other["key"]) as client:
        problem(await client.post("/v1/jobs", json=planned), 422, "plan-not-found")
    api.execute("UPDATE plans SET created_at = created_at - interval '25 hours'")
    problem(await api.client.post("/v1/jobs", json=planned), 422, "plan-not-found")


async def test_a_hub_model_is_planned_at_its_commit_and_run_there(
    api: Api, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with directory_hub(**{"models/acme/tiny-vl": tiny, "datasets/acme/rows": tiny}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        found = await plan(api, job_body())
        assert found["accepted"]
        assert found["resolved"] == {
            "model_commit": COMMIT,
            "model_fingerprint": None,
            "dataset_commit": COMMIT,
            "dataset_sha256": None,
            "evaluation_commit": None,
            "evaluation_sha256": None,
        }
        assert found["estimate"]["download_bytes"] == found["estimate"]["size"]["bytes_before"]
        absent = await plan(api, job_body(model={"id": "acme/absent"}))
        assert [refusal["code"] for refusal in absent["refusals"]] == ["model_not_found"]
    # The job needs no hub: everything is pinned.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    job = ok(await api.client.post("/v1/jobs", json={**job_body(), "plan": found["digest"]}), 201)
    assert (job["resolved"]["model_commit"], job["resolved"]["dataset_commit"]) == (COMMIT, COMMIT)
    answer = problem(await api.client.post("/v1/jobs:plan", json=job_body()), 503, "hub-unavailable")
    assert answer["retryable"]


def add_worker(api: Api, device: str, *, memory: int | None, on_device: int | None = None) -> None:
    api.execute(
        "INSERT INTO workers (id, host, device, memory_bytes, device_memory_bytes, cores)"
        " VALUES (%s, 'h', %s, %s, %s, 4)",
        [f"{device}-{memory}", device, memory, on_device],
    )


async def test_a_job_that_no_worker_can_hold_is_refused_before_it_waits(api: Api, tmp_path: Path) -> None:
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)})
    add_worker(api, "cpu", memory=500_000_000)
    add_worker(api, "NVIDIA T4", memory=64_000_000_000, on_device=1_000_000)
    found = await plan(api, body)
    assert [refusal["code"] for refusal in found["refusals"]] == ["insufficient_memory"]
    assert [(kind["device"], kind["fits"]) for kind in found["workers"]] == [("cpu", False), ("NVIDIA T4", False)]
    assert "of device memory" in found["workers"][1]["reason"]
    problem(await api.client.post("/v1/jobs", json=body), 422, "insufficient-memory")
    add_worker(api, "cpu", memory=None)  # says nothing of itself: it may be large enough
    assert (await plan(api, body))["accepted"]
    assert ok(await api.client.post("/v1/jobs", json=body), 201)["plan"]["memory"]["cpu"]["host"] > 500_000_000


async def test_a_plan_looks_at_the_class_of_device_and_the_disk_as_a_claim_does(api: Api, tmp_path: Path) -> None:
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)}, device="gpu")
    add_worker(api, "cpu", memory=500_000_000)

    alone = await plan(api, body)
    add_worker(api, "NVIDIA T4", memory=64_000_000_000, on_device=64_000_000_000)
    api.execute("UPDATE workers SET free_disk_bytes = 1000 WHERE device = 'NVIDIA T4'")
    both = await plan(api, body)

    assert alone["accepted"], "it waits for a worker of the class"
    assert both["accepted"], "a disk is not full for ever"
    assert [(kind["device"], kind["fits"]) for kind in both["workers"]] == [("cpu", False), ("NVIDIA T4", False)]
    assert "of class gpu, and this is cpu" in both["workers"][0]["reason"]
    assert "of free disk, NVIDIA T4 has 1,000 B" in both["workers"][1]["reason"]


async def test_minutes_come_from_blocks_that_were_measured_here(api: Api, tmp_path: Path) -> None:
    body = job_body(model={"id": "local/tiny"}, calibration={"dataset": await upload(api, tmp_path)})
    shipped = (await plan(api, body))["estimate"]["placements"][0]["seconds"]
    job = ok(await api.client.post("/v1/jobs", json=body), 201)
    per_block = job["plan"]["seconds_per_block"]["cpu"]
    api.start(job["id"])
    api.execute("INSERT INTO attempts (job_id, attempt, worker, device) VALUES (%s, 1, 'w', 'cpu')", [job["id"]])
    for block in range(4):
        api.execute(
            "INSERT INTO layers (job_id, block, attempt, seconds, report, files) VALUES (%s, %s, 1, %s, '{}', '[]')",
            [job["id"], block, 100 * per_block],
        )
    assert (await plan(api, body))["estimate"]["placements"][0]["seconds"] == shipped  # it has not finished
    api.end(job["id"], "succeeded")
    measured = (await plan(api, body))["estimate"]["placements"][0]["seconds"]
    assert (measured["basis"], measured["blocks_measured"]) == ("measured", 4)
    assert measured["likely"] - shipped["likely"] == pytest.approx(99 * 2 * per_block, abs=0.2)
