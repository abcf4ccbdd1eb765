"""A model directory is read under in-memory names, exactly as transformers would load it, or refused with a reason."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from quant_experts.errors import InvalidModel, UnsupportedModel
from quant_experts.model.blueprint import load, open_blueprint, unload
from quant_experts.model.tensor_file import TensorFile, write_tensors
from tests.every_type.tiny import tiny_config
from tests.models import FAMILIES, make_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_family_is_read_as_transformers_loads_it(family: str, tied: bool, tmp_path: Path) -> None:
    make_model(family, tmp_path, tied=tied, max_shard_size="300KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    blueprint = open_blueprint(tmp_path, device=CPU)
    kind = AutoModelForImageTextToText if blueprint.manifest.takes_images else AutoModelForCausalLM
    expected = kind.from_pretrained(tmp_path)
    for name, _ in blueprint.model.named_children():
        load(blueprint, name)
    for ours, theirs in (
        (blueprint.model.named_parameters(), expected.named_parameters()),
        (blueprint.model.named_buffers(), expected.named_buffers()),
    ):
        for (name, tensor), (expected_name, reference) in zip(ours, theirs, strict=False):
            assert name == expected_name
            assert tensor.dtype == reference.dtype
            assert torch.equal(tensor, reference), name
    assert torch.equal(blueprint.model.lm_head.weight, expected.lm_head.weight)
    assert blueprint.weights.unused == []
    assert ("lm_head.weight" in blueprint.weights.names) is not tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_models_own_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    blueprint = open_blueprint(make_model("llama", tmp_path, dtype=dtype), device=CPU)
    assert blueprint.dtype == dtype
    assert blueprint.weights.read("model.layers.0.mlp.down_proj.weight").dtype == dtype


def test_without_a_dtype_in_the_configuration_the_files_decide(tmp_path: Path) -> None:
    make_model("llama", tmp_path, dtype=torch.float16)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_blueprint(tmp_path, device=CPU).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_buffer_that_no_file_holds_and_the_model_cannot_make_is_found(dtype: torch.dtype, tmp_path: Path) -> None:
    blueprint = open_blueprint(make_model("llava", tmp_path), device=CPU)
    tower = blueprint.model.get_submodule("model.vision_tower.embeddings")
    load(blueprint, "model.vision_tower")  # its positions can be made
    assert tower.position_ids.tolist() == [list(range(17))]
    tower.register_buffer("marks", torch.zeros(3, dtype=dtype, device="meta"), persistent=False)
    with pytest.raises(InvalidModel, match=r"vision_tower\.embeddings\.marks cannot be computed"):
        load(blueprint, "model.vision_tower")


def test_an_emptied_block_holds_no_memory_and_can_be_filled_again(tmp_path: Path) -> None:
    blueprint = open_blueprint(make_model("qwen2_vl", tmp_path), device=CPU)
    name = "model.language_model.layers.1"
    load(blueprint, name)
    before = blueprint.model.get_submodule(name).mlp.up_proj.weight.clone()
    unload(blueprint, name)
    assert all(parameter.is_meta for parameter in blueprint.model.get_submodule(name).parameters())
    load(blueprint, name)
    assert torch.equal(blueprint.model.get_submodule(name).mlp.up_proj.weight, before)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model("qwen2_vl", tmp_path / "tiny")


def refusal(model: Path) -> str:
    with pytest.raises(InvalidModel) as raised:
        open_blueprint(model, device=CPU)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_pickle_weights_are_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    message = refusal(model)
    assert "pytorch_model.bin" in message
    assert "safetensors" in message


def test_a_directory_without_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "neither" in refusal(model)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    make_model("llama", tmp_path, max_shard_size="300KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.5, 0.9999])
def test_a_truncated_file_is_named(model: Path, share: float) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: int(len(content) * share)])
    assert "model.safetensors" in refusal(model)


def test_a_header_that_points_outside_the_file_is_refused(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = max((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"][1])
    header[name]["shape"] = [1 << 40]
    header[name]["data_offsets"][1] = header[name]["data_offsets"][0] + (1 << 41)
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert "truncated" in refusal(model)


def test_an_index_that_promises_what_a_shard_does_not_hold_is_refused(tmp_path: Path) -> None:
    make_model("llama", tmp_path, max_shard_size="300KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.7.mlp.up_proj.weight"] = sorted(set(index["weight_map"].values()))[0]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.layers.7.mlp.up_proj.weight" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "weights.bin"])
def test_an_index_cannot_point_outside_the_directory(model: Path, name: str) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert "beside the index" in refusal(model)


def test_a_missing_tensor_is_named(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, model / "model.safetensors")
    assert "model.language_model.layers.1.mlp.down_proj.weight" in refusal(model)


def test_a_tensor_of_another_shape_is_named(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.zeros(3, 5, dtype=torch.bfloat16)
    save_file(tensors, model / "model.safetensors")
    message = refusal(model)
    assert "model.layers.1.mlp.down_proj.weight" in message
    assert "[3, 5]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_found_when_its_block_is_read(model: Path, value: float) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, model / "model.safetensors")
    blueprint = open_blueprint(model, device=CPU)
    with pytest.raises(InvalidModel, match=r"layers\.1\.mlp\.down_proj\.weight: 1 of 24576 weights are not finite"):
        load(blueprint, "model.language_model.layers.1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "vit"}, r"model_type 'vit' is not supported: transformers .* has no causal language model"),
        ({"model_type": None}, "model_type None is not supported"),
        (
            {"architectures": ["Qwen2VLForSequenceClassification"]},
            "architecture Qwen2VLForSequenceClassification is not supported; of qwen2_vl it is",
        ),
    ],
)
def test_another_architecture_is_refused_by_name(model: Path, change: dict[str, object], reason: str) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UnsupportedModel, match=reason):
        open_blueprint(model, device=CPU)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_tower_that_needs_an_absent_package_is_refused_by_its_name(model: Path) -> None:
    (model / "config.json").write_text(tiny_config("perception_lm").to_json_string())
    with pytest.raises(UnsupportedModel, match=r"cannot be built here: TimmWrapperModel requires the timm library"):
        open_blueprint(model, device=CPU)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"model_type": "qwen2_vl", "text_config": 7}'])
def test_a_broken_configuration_is_refused(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert "config.json" in refusal(model)


def test_a_quantized_model_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    assert "already quantized (awq)" in refusal(model)


def test_remote_code_is_never_run(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "boom.Boom", "AutoModelForImageTextToText": "boom.Boom"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "boom.py").write_text("raise SystemExit('remote code ran')")
    assert type(open_blueprint(model, device=CPU).model).__module__.startswith("transformers.")


def test_a_tensor_file_returns_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "mask": torch.tensor([True, False]),
        "bf16": torch.randn(3, 5).bfloat16(),
        "transposed": torch.randn(4, 2).T,
    }
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    written = write_tensors(tmp_path / "x.safetensors", layout, tensors.items())
    again = TensorFile(tmp_path / "x.safetensors")
    by_the_library = load_file(tmp_path / "x.safetensors")
    assert written.bytes == (tmp_path / "x.safetensors").stat().st_size
    for name, tensor in tensors.items():
        assert torch.equal(again.read(name), tensor)
        assert torch.equal(by_the_library[name], tensor)


def test_a_tensor_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    layout = {"a": (torch.float32, (2,)), "b": (torch.float32, (2,))}
    with pytest.raises(ValueError, match="never came"):
        write_tensors(tmp_path / "x.safetensors", layout, [("a", torch.zeros(2))])
    assert not (tmp_path / "x.safetensors").exists()
