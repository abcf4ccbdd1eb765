"""A model that cannot be quantized ends its job with one clear error and a stable code; the service lives on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.conftest import OPTIONS, Site


def pickle_only(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def missing_shard(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, model / "model-00001-of-00002.safetensors")
    shards = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (model / "model.safetensors").unlink()


def truncated(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


def other_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**config, "model_type": "vit", "architectures": ["ViTForImageClassification"]})
    )


def not_a_number(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight"))
    tensors[name][3, 5] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "pickle-only": (pickle_only, "invalid_model", "safetensors"),
    "missing-shard": (missing_shard, "invalid_model", "model-00002-of-00002.safetensors"),
    "truncated": (truncated, "invalid_model", "model.safetensors"),
    "other-architecture": (other_architecture, "unsupported_model", "model_type 'vit' is not supported"),
    "not-a-number": (not_a_number, "numerical_failure|invalid_model", "layers.1.mlp"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_broken_model_fails_its_job_with_one_clear_error(site: Site, dataset: str, name: str) -> None:
    spoil, code, named = CASES[name]
    shutil.copytree(site.models / "tiny", site.models / name)
    spoil(site.models / name)
    job = site.service.submit(f"local/{name}", dataset, "W4A6", OPTIONS)
    events = list(site.service.events(job["id"]))
    ended: dict[str, Any] = site.service.job(job["id"])
    assert ended["status"] == "failed"
    assert ended["error"]["code"] in code.split("|")
    assert named in ended["error"]["message"]
    assert "\n" not in ended["error"]["message"]
    assert events[-1]["type"] == "job.failed"
    assert site.service.client.get(f"/v1/jobs/{job['id']}/artifacts").json()["data"] == []
    assert site.service.client.get("/readyz").status_code == 200


def test_a_group_size_that_does_not_divide_fails_the_job_and_names_the_layer(site: Site, dataset: str) -> None:
    job = site.service.submit("local/tiny", dataset, "W4A6", {**OPTIONS, "group_size": 128})
    list(site.service.events(job["id"]))
    error = site.service.job(job["id"])["error"]
    assert error["code"] == "invalid_spec"
    assert "128" in error["message"]
    assert "layers.0" in error["message"]


def test_a_rank_larger_than_the_layer_is_clamped_and_the_report_says_so(site: Site, dataset: str) -> None:
    job = site.service.submit("local/tiny", dataset, "W4A6", {**OPTIONS, "shared_rank": 512})
    list(site.service.events(job["id"]))
    report = site.service.report(job["id"])
    warnings = [warning for block in report["blocks"] for group in block["groups"] for warning in group["warnings"]]
    assert any("512" in warning and "rank" in warning for warning in warnings)
