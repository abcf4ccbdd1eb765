"""``/v1/models``: what a job may name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.settings import Settings
from tests.app.conftest import ok, started


def put(root: Path, name: str, config: str | None) -> None:
    (root / name).mkdir(parents=True)
    if config is not None:
        (root / name / "config.json").write_text(config)


async def test_models_are_listed_as_a_job_names_them_with_what_it_would_refuse(
    settings: Settings, tmp_path: Path
) -> None:
    root = tmp_path / "below"
    good = json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
    put(root, "good", good)
    put(root, "vit", json.dumps({"model_type": "vit"}))
    put(root, "bare", None)
    put(root, "broken", "[1")
    put(root, "list", "[]")
    put(root, ".hidden", good)
    put(tmp_path, "outside", good)
    (root / "escape").symlink_to(tmp_path / "outside")
    (root / "notes.txt").write_text("x")
    async with started(settings.model_copy(update={"model_root": root})) as api:
        listed = ok(await api.client.get("/v1/models"))
        found = {model["id"]: model for model in listed["data"]}
        assert list(found) == [f"local/{name}" for name in ("bare", "broken", "good", "list", "vit")]
        assert found["local/good"] == {"id": "local/good", "model_type": "qwen2", "problem": None}
        assert "No such file" in found["local/bare"]["problem"]
        assert "'vit' is not supported" in found["local/vit"]["problem"]
        assert found["local/broken"]["problem"] == found["local/list"]["problem"] == "config.json is not a JSON object"
        assert "qwen2_vl" in listed["families"]
        assert listed["note"] is None
        assert str(tmp_path) not in json.dumps(listed)


async def test_the_api_itself_parses_no_config(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child does, which was forked from elsewhere and knows nothing of this."""
    monkeypatch.setattr("app.parsing.operations.family_of", lambda config: 1 / 0)
    put(tmp_path / "below", "good", json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    async with started(settings.model_copy(update={"model_root": tmp_path / "below"})) as api:
        (model,) = ok(await api.client.get("/v1/models"))["data"]
    assert model["problem"] is None


async def test_where_no_local_models_can_be_listed_it_says_why(settings: Settings, tmp_path: Path) -> None:
    for root, words in ((None, "QE_MODEL_ROOT is not set"), (tmp_path / "none", "where the workers are")):
        async with started(settings.model_copy(update={"model_root": root})) as api:
            listed = ok(await api.client.get("/v1/models"))
            assert listed["data"] == []
            assert words in listed["note"]
