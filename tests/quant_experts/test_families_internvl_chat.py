"""An original InternVL repository gives the native model's logits, from its data alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import quant_experts  # noqa: F401 -- registers the method
from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.errors import InvalidModel, UnsupportedModel
from quant_experts.model.blueprint import load, open_blueprint
from quant_experts.model.families.internvl_chat import native_directory
from quant_experts.run.quantize import quantize
from tests.models_internvl_chat import make_internvl_chat
from tests.planned import check_planned_size
from tests.quant_experts.test_families import SPEC, loads_and_generates
from tests.rows import data_uri, image_row, picture, write_rows

CPU = torch.device("cpu")
LANGUAGES = ("InternLM2ForCausalLM", "Qwen2ForCausalLM")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_original_layout_gives_the_native_logits(language: str, tmp_path: Path) -> None:
    native = make_internvl_chat(tmp_path / "original", language)
    directory = native_directory(tmp_path / "original", tmp_path / "native")
    blueprint = open_blueprint(directory, device=CPU)
    assert blueprint.weights.unused == []
    for name, _ in blueprint.model.named_children():
        load(blueprint, name)
    row = image_row(1, data_uri(picture(size=(112, 56))))
    sample = open_collator(directory, blueprint.model.config)(parse_row(1, row, tmp_path))
    assert int(sample.vision.sum()) == 3 * 4  # two tiles and the thumbnail
    with torch.no_grad():
        logits = blueprint.model(**sample.inputs, use_cache=False).logits
        assert torch.equal(logits, native(**sample.inputs, use_cache=False).logits)
    # The image does something, so that a tower left out would be seen.
    blank = {**sample.inputs, "pixel_values": torch.zeros_like(sample.inputs["pixel_values"])}
    assert not torch.equal(logits, native(**blank, use_cache=False).logits)


@pytest.mark.parametrize(
    ("language", "vision"),
    [("InternLM2ForCausalLM", "keep"), ("InternLM2ForCausalLM", "quantize"), ("Qwen2ForCausalLM", "quantize")],
)
def test_an_original_repository_becomes_a_native_checkpoint(
    language: str, vision: Literal["keep", "quantize"], tmp_path: Path
) -> None:
    make_internvl_chat(tmp_path / "original", language)
    rows = write_rows(tmp_path / "rows.jsonl", [image_row(i) for i in range(5)])
    spec = SPEC.model_copy(update={"vision": vision})
    report = quantize(
        model=tmp_path / "original", calibration=rows, output=tmp_path / "out", spec=spec, work=tmp_path / "work"
    )
    check_planned_size(tmp_path / "original", spec, report)
    in_tower = [group.name for block in report.blocks if block.stack == "vision" for group in block.groups]
    assert bool(in_tower) is (vision == "quantize")
    assert report.model == "original"
    assert not any("belong to no module" in warning for warning in report.warnings)
    assert report.quality is not None
    assert report.quality.kl < 0.05
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("internvl", ["InternVLForConditionalGeneration"])
    assert not list((tmp_path / "out").glob("*internlm2*"))
    loads_and_generates(tmp_path / "out", image_row(7))


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def test_a_turn_is_written_as_the_authors_write_it(tmp_path: Path) -> None:
    native = make_internvl_chat(tmp_path / "original", "InternLM2ForCausalLM")
    directory = native_directory(tmp_path / "original", tmp_path / "native")
    sample = open_collator(directory, native.config)(parse_row(1, image_row(1), tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = sample.inputs["input_ids"][0].tolist()
    image = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>\n"
    assert text_of(tokenizer, ids) == (
        f"<s><|im_start|>user\n{image}Which colour is the square at place 1?<|im_end|>"
        "<|im_start|>assistant\nThe square is green.<|im_end|>"
    )
    assert ids[0] == 1
    # The end of a turn ends generation, whatever the language model's own end is.
    ends = json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ps_version": "v1"}, "ps_version other than v2"),
        ({"template": "phi3-chat"}, "chat template 'phi3-chat' is not supported; supported: Hermes-2"),
        ({"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, "language model Phi3ForCausalLM"),
    ],
)
def test_what_the_native_architecture_cannot_do_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_internvl_chat(tmp_path / "original", "Qwen2ForCausalLM")
    path = tmp_path / "original" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnsupportedModel, match=message):
        native_directory(tmp_path / "original", tmp_path / "native")


def test_a_repository_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    make_internvl_chat(tmp_path / "original", "InternLM2ForCausalLM")
    (tmp_path / "original" / "tokenizer.model").unlink()
    with pytest.raises(InvalidModel, match=r"no tokenizer\.json, vocab\.json or tokenizer\.model"):
        native_directory(tmp_path / "original", tmp_path / "native")


def test_a_fused_tensor_of_another_shape_is_named_before_anything_runs(tmp_path: Path) -> None:
    make_internvl_chat(tmp_path / "original", "InternLM2ForCausalLM")
    key = "language_model.model.layers.1.attention.wqkv.weight"
    for shard in (tmp_path / "original").glob("*.safetensors"):
        tensors = load_file(shard)
        if key in tensors:
            save_file({**tensors, key: tensors[key][:-1].clone()}, shard)
    directory = native_directory(tmp_path / "original", tmp_path / "native")
    with pytest.raises(InvalidModel, match=r"layers\.1\.attention\.wqkv\.weight has shape \[191, 128\]"):
        open_blueprint(directory, device=CPU)


def test_a_native_repository_is_left_as_it_is(tmp_path: Path) -> None:
    assert native_directory(tmp_path, tmp_path / "native") == tmp_path
    assert not (tmp_path / "native").exists()
