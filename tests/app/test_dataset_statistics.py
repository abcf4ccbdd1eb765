"""Figures over a dataset: its modalities, and its tokens as a model's own processor counts them."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from core.settings import Settings
from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from tests.app.conftest import Api, ok, problem
from tests.app.test_audio_headers import row as heard
from tests.app.test_audio_headers import wav
from tests.app.test_client_cli import Qe, network, qe  # noqa: F401 -- fixtures
from tests.app.test_datasets import jsonl, parquet, upload
from tests.models import make_model
from tests.planning.directory_hub import directory_hub
from tests.quant_experts.test_hub import COMMIT
from tests.rows import data_uri, image_row, picture, text_row

SIZES = [(84, 84), (60, 200), (333, 100)]
LONG = {"messages": [{"role": "user", "content": "Which colour is the square? " * 500}]}
ROWS = [*(image_row(i, data_uri(picture(seed=i, size=size))) for i, size in enumerate(SIZES)), text_row(0), text_row(1)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2_vl", tmp_path_factory.mktemp("statistics") / "tiny", blocks=1)


@pytest.fixture
def model(settings: Settings, tiny: Path) -> Path:
    """``local/small`` of the service."""
    assert settings.model_root is not None
    return Path(shutil.copytree(tiny, settings.model_root / "small"))


async def figures_of(api: Api, *rows: Any, model: str | None = None, content: bytes | None = None) -> dict[str, Any]:
    made = ok(await upload(api, content or jsonl(*rows)), 201)["id"]
    found = ok(await api.client.get(f"/v1/datasets/{made}/statistics", params={"model": model} if model else {}))
    return dict(found)


def spread(values: list[int]) -> dict[str, float]:
    return {"least": min(values), "median": statistics.median(values), "most": max(values), "total": sum(values)}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
async def test_modalities_are_told(api: Api, kind: str) -> None:
    rows: list[Any] = [heard(wav(seconds=0.5)), heard(wav(seconds=2.0, channels=2)), text_row(0)]
    if kind == "parquet":
        sounds = [{"bytes": wav(seconds=0.5), "path": None}, {"bytes": wav(seconds=2.0, channels=2), "path": None}]
        rows = [heard(sound) for sound in sounds]
        for each in rows:
            each["messages"][1]["content"] = [{"type": "text", "text": "What was said."}]
        found = await figures_of(api, content=parquet(rows))
    else:
        found = await figures_of(api, *rows, image_row(0))
    assert found["rows_with_audio"] == found["audio"] == 2
    assert found["audio_seconds"] == {"least": 0.5, "median": 1.25, "most": 2.0, "total": 2.5}
    assert (found["rows_with_images"], found["rows_text_only"]) == ((1, 1) if kind == "jsonl" else (0, 0))


async def test_without_a_model_tokens_are_an_estimate_and_say_so(api: Api) -> None:
    tokens = (await figures_of(api, *ROWS, LONG))["tokens"]
    assert (tokens["model"], tokens["text_by"], tokens["images_by"]) == (None, "estimate", "estimate")
    assert "an estimate" in tokens["note"]
    assert tokens["image"]["total"] == 9 + 14 + 48  # areas of 28 x 28 pixels
    assert (tokens["rows"], tokens["rows_over"], tokens["limit"]) == (6, 1, 2048)


async def test_with_a_model_they_are_those_of_its_processor(api: Api, model: Path, tmp_path: Path) -> None:
    collate = open_collator(model, AutoConfig.from_pretrained(model))
    samples = [collate(parse_row(number, each, tmp_path)) for number, each in enumerate(ROWS, start=1)]
    images = [int(sample.vision.sum()) for sample in samples]
    tokens = (await figures_of(api, *ROWS, model="local/small"))["tokens"]
    assert tokens["row"] == spread([sample.tokens for sample in samples])
    assert tokens["image"] == spread(images)
    assert tokens["text"] == spread([sample.tokens - seen for sample, seen in zip(samples, images, strict=True)])
    assert (tokens["text_by"], tokens["images_by"], tokens["turns_by"]) == ("tokenizer", "processor", "template")
    assert (tokens["model"], tokens["note"], tokens["rows_over"]) == ("local/small", None, 0)


async def test_a_hub_model_is_read_at_its_commit_and_without_its_weights(
    api: Api, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with directory_hub(**{"models/acme/tiny-vl": tiny}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        tokens = (await figures_of(api, *ROWS, model="acme/tiny-vl"))["tokens"]
        assert (tokens["commit"], tokens["text_by"]) == (COMMIT, "tokenizer")
        assert hub.sent < (tiny / "model.safetensors").stat().st_size
        dataset = ok(await api.client.get("/v1/datasets"))["data"][0]["id"]
        absent = await api.client.get(f"/v1/datasets/{dataset}/statistics", params={"model": "acme/absent"})
        assert "acme/absent" in problem(absent, 422, "invalid-model")["detail"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    answer = await api.client.get(f"/v1/datasets/{dataset}/statistics", params={"model": "acme/tiny-vl"})
    assert problem(answer, 503, "hub-unavailable")["retryable"]


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def no_known_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for m in messages %}@{{ m['content'] }}{% endfor %}")


def no_vision(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["vision_config"]
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "by", "words"),
    [
        (no_tokenizer, ("estimate", "processor", "template"), "no tokenizer.json"),
        (no_known_template, ("tokenizer", "processor", "assumed"), "style that is not known"),
        (no_vision, ("tokenizer", "processor", "template"), "takes no images"),
    ],
)
async def test_what_keeps_them_from_being_exact_is_said(
    api: Api, model: Path, change: Any, by: tuple[str, str, str], words: str
) -> None:
    change(model)
    tokens = (await figures_of(api, *ROWS, model="local/small"))["tokens"]
    assert (tokens["text_by"], tokens["images_by"], tokens["turns_by"]) == by
    assert words in tokens["note"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "none"}}'),
        ("tokenizer_config.json", b"[]"),
        ("config.json", b"\xff"),
    ],
)
async def test_a_file_that_cannot_be_used_is_named(api: Api, model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    made = ok(await upload(api, jsonl(*ROWS)), 201)["id"]
    answer = await api.client.get(f"/v1/datasets/{made}/statistics", params={"model": "local/small"})
    assert problem(answer, 422, "invalid-model")["detail"].startswith(name)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"model": "local/absent"}, "invalid-model"),
        ({"model": "local/.."}, "invalid-request"),
        ({"model": "https://evil.example/x"}, "invalid-request"),
        ({"model": ""}, "invalid-request"),
        ({"model": "a/b", "revision": "../x"}, "invalid-request"),
    ],
)
async def test_a_model_that_is_none_is_refused(api: Api, asked: dict[str, str], kind: str) -> None:
    made = ok(await upload(api, jsonl(*ROWS)), 201)["id"]
    problem(await api.client.get(f"/v1/datasets/{made}/statistics", params=asked), 422, kind)


async def test_the_model_of_another_tenants_rows_is_not_even_looked_at(api: Api) -> None:
    missing = await api.client.get(f"/v1/datasets/ds_{'0' * 32}/statistics", params={"model": "local/absent"})
    problem(missing, 404, "not-found")


async def test_the_command_line_shows_them_as_a_table(qe: Qe, api: Api, model: Path) -> None:  # noqa: F811
    made = ok(await upload(api, jsonl(*ROWS, LONG, heard(wav(seconds=0.5)))), 201)["id"]
    code, out, err = await qe("datasets", "show", made, "--model", "local/small", "--rows", "0")
    assert code == 0, err
    lines = {line.split("  ")[0].strip() or line.split()[0]: line for line in out.splitlines()}
    assert lines["rows"].split(None, 1)[1] == "7, 3 with images, 1 with audio"
    assert lines["audio"].split(None, 1)[1] == "1 files, 0.5 seconds, 0.5 to 0.5 each"
    assert lines["tokens"].endswith("of local/small")
    told = [line for line in out.splitlines() if "counted by its tokenizer" in line]
    assert len(told) == 1
    assert "1 of 7 rows longer than the 2,048 tokens" in out
    code, out, _ = await qe("datasets", "show", made, "--model", "local/small", "--json")
    assert json.loads(out)["statistics"]["tokens"]["turns_by"] == "template"
    code, _, err = await qe("datasets", "show", made, "--model", "local/absent")
    assert (code, "absent" in err, err.count("\n")) == (1, True, 1)
