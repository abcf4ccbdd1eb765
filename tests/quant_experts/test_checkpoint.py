"""Writing a checkpoint: what is in it, that it is whole or absent, and that damage is found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from quant_experts.checkpoint.configuration import auto_map, ignored_modules
from quant_experts.checkpoint.read import read_contents
from quant_experts.checkpoint.shards import spool, write_shards
from quant_experts.checkpoint.verify import verify_checksums
from quant_experts.errors import InvalidCheckpoint, InvalidModel, InvalidSpec
from quant_experts.forward import modeling_quant_experts
from tests.quant_experts.checkpoints import Parts, quantized_parts, written


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return quantized_parts("qwen2_vl", tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def checkpoint(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(parts, tmp_path_factory.mktemp("written") / "out")


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "damaged"))


def test_it_holds_everything_that_a_user_needs(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "modeling_quant_experts.py",
        "preprocessor_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        "quality_report.json",
        "quality_report.html",
        "recipe.json",
        "SHA256SUMS",
    }


def test_companions_and_loader_are_copied_byte_for_byte(parts: Parts, checkpoint: Path) -> None:
    source: Path = parts.arguments["source"]
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.jinja", "generation_config.json"):
        assert (checkpoint / name).read_bytes() == (source / name).read_bytes()
    loader = Path(str(modeling_quant_experts.__file__))
    assert (checkpoint / "modeling_quant_experts.py").read_bytes() == loader.read_bytes()


def test_code_and_foreign_weights_of_the_source_are_not_copied(parts: Parts, tmp_path: Path) -> None:
    source = Path(shutil.copytree(parts.arguments["source"], tmp_path / "source"))
    for name in ("modeling_evil.py", "pytorch_model.bin", "recipe.json"):
        (source / name).write_text("{}")
    output = written(parts, tmp_path / "out", source=source)
    assert not list(output.glob("*evil*")) + list(output.glob("*.bin"))
    assert json.loads((output / "recipe.json").read_text())["spec"]["scheme"] == "W4A8"


def test_the_configuration_keeps_the_models_own_and_says_what_was_done(parts: Parts, checkpoint: Path) -> None:
    before = json.loads((parts.arguments["source"] / "config.json").read_text())
    config = json.loads((checkpoint / "config.json").read_text())
    added = config["quantization_config"]
    assert {key: config[key] for key in before} == before
    assert (added["quant_method"], added["format"], added["scheme"], added["reconstruction"]) == (
        "quant_experts",
        3,  # groups with a rotation among them
        "W4A8",
        "qe",
    )
    assert len(added["groups"]) == 8
    assert added["ignored"] == [
        "lm_head",
        "model.language_model.embed_tokens",
        "model.language_model.norm",
        "model.visual",
    ]
    assert config["auto_map"]["AutoModelForImageTextToText"] == (
        "modeling_quant_experts.Qwen2VLForConditionalGeneration"
    )


def test_without_a_dtype_in_the_source_the_models_own_is_written(parts: Parts, tmp_path: Path) -> None:
    source = Path(shutil.copytree(parts.arguments["source"], tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    output = written(parts, tmp_path / "out", source=source)
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_source_that_is_quantized_already_is_refused(parts: Parts, tmp_path: Path) -> None:
    source = Path(shutil.copytree(parts.arguments["source"], tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(InvalidModel, match="quantized already"):
        written(parts, tmp_path / "out", source=source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_the_same_parts_give_the_same_bytes(parts: Parts, checkpoint: Path, tmp_path: Path) -> None:
    again = written(parts, tmp_path / "out")
    assert (again / "SHA256SUMS").read_bytes() == (checkpoint / "SHA256SUMS").read_bytes()


def test_the_stored_tensors_are_those_of_the_model_in_memory(parts: Parts, checkpoint: Path) -> None:
    with safe_open(checkpoint / "model-00001-of-00001.safetensors", framework="pt") as stored:
        in_memory = parts.model.state_dict()
        empty = {f"{g['parent']}.{layer}.weight" for g in parts.arguments["groups"] for layer in g["layers"]}
        assert set(stored.keys()) == set(in_memory) | empty
        assert all(stored.get_tensor(name).shape == (0,) for name in empty)
        assert all(torch.equal(stored.get_tensor(name), tensor) for name, tensor in in_memory.items())


def test_shards_stay_below_their_size_and_the_index_finds_every_tensor(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((100 + i, 3), i, dtype=[torch.bfloat16, torch.float32][i % 2]) for i in range(9)}
    tensors["odd"] = torch.arange(3, dtype=torch.int8)
    write_shards(spool(tensors.items(), tmp_path / "spool"), tmp_path, shard_bytes=3000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    assert len(set(index["weight_map"].values())) > 2
    for name, tensor in tensors.items():
        path = tmp_path / index["weight_map"][name]
        assert path.stat().st_size < 3000 + 2000
        with safe_open(path, framework="pt") as shard:
            assert torch.equal(shard.get_tensor(name), tensor)


def test_a_tensor_that_comes_twice_is_named(parts: Parts, tmp_path: Path) -> None:
    blocks = parts.arguments["block_files"]
    with pytest.raises(InvalidModel, match=r"layers\.0\..* comes from"):
        written(parts, tmp_path / "out", block_files=[blocks[0], *blocks])


@pytest.mark.parametrize("failing", ["check", "tensors"])
def test_a_failure_leaves_nothing_behind(parts: Parts, tmp_path: Path, failing: str) -> None:
    def refuse(directory: Path) -> None:
        assert (directory / "SHA256SUMS").is_file()
        raise InvalidCheckpoint("logits differ")

    def broken() -> object:
        yield from parts.arguments["other_tensors"]
        raise InvalidCheckpoint("the source vanished")

    changes = {"check": refuse} if failing == "check" else {"other_tensors": broken()}
    with pytest.raises(InvalidCheckpoint):
        written(parts, tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_use_is_never_overwritten(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InvalidSpec, match="not an empty directory"):
        written(parts, tmp_path)
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_checksums_cover_every_file(checkpoint: Path) -> None:
    assert verify_checksums(checkpoint) == len(list(checkpoint.iterdir())) - 1
    first = (checkpoint / "SHA256SUMS").read_text().splitlines()[0]
    digest, name = first.split("  ")
    assert hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == digest


def test_a_changed_a_missing_and_a_strange_file_are_all_named(damaged: Path) -> None:
    shard = damaged / "model-00001-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (damaged / "tokenizer.json").unlink()
    (damaged / "extra.bin").write_bytes(b"?")
    with pytest.raises(InvalidCheckpoint) as raised:
        verify_checksums(damaged)
    message = str(raised.value)
    assert "tokenizer.json is missing" in message
    assert "extra.bin is not listed" in message
    assert "model-00001-of-00001.safetensors has changed" in message


def test_checksums_that_lead_out_of_the_directory_are_refused(damaged: Path) -> None:
    with (damaged / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  ../secret\n")
    with pytest.raises(InvalidCheckpoint, match="line 16"):
        verify_checksums(damaged)


def test_contents_count_weights_and_bits(checkpoint: Path) -> None:
    contents = read_contents(checkpoint)
    assert contents.weights == 2 * (128 * (128 + 64 + 64) + 128 * 128 + 128 * 2 * 192 + 192 * 128)
    assert 4.5 < contents.base_bits < 4.52  # 4 bits, a bf16 scale per 32 weights, the shapes
    assert contents.effective_bits > contents.base_bits + 1
    assert contents.report is not None
    assert contents.groups[0].layers == ("q_proj", "k_proj", "v_proj")


def test_contents_name_a_missing_tensor(damaged: Path) -> None:
    index = json.loads((damaged / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.nothing"] = "model-00001-of-00001.safetensors"
    (damaged / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidCheckpoint, match=r"model\.nothing"):
        read_contents(damaged)


@pytest.mark.parametrize("value", [None, [], {}, 0, "x", [None]], ids=repr)
@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("config.json", ("quantization_config",), "quant_method"),
        ("config.json", ("quantization_config", "groups"), "do not fit together"),
        ("config.json", ("quantization_config", "groups", 0), "do not fit together"),
        ("config.json", ("quantization_config", "groups", 0, "group_size"), "do not fit together"),
        ("model.safetensors.index.json", ("weight_map",), "weight_map|do not fit together"),
        ("model.safetensors.index.json", ("weight_map", "lm_head.weight"), "weight_map|No such file|not a safetensors"),
    ],
    ids=str,
)
def test_an_edited_checkpoint_is_refused_in_words(
    damaged: Path, name: str, path: tuple[str | int, ...], said: str, value: Any
) -> None:
    content = json.loads((damaged / name).read_text())
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    (damaged / name).write_text(json.dumps(content))
    with pytest.raises(InvalidCheckpoint, match=said):
        read_contents(damaged)


def test_files_that_are_no_text_are_refused_in_words(damaged: Path) -> None:
    (damaged / "SHA256SUMS").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidCheckpoint, match="line 1"):
        verify_checksums(damaged)
    (damaged / "config.json").write_text("[" * 100_000)
    with pytest.raises(InvalidCheckpoint, match=r"config\.json"):
        read_contents(damaged)


def test_a_directory_that_is_no_checkpoint_is_said_to_be_none(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match="quant_method"):
        read_contents(parts.arguments["source"])
    with pytest.raises(InvalidCheckpoint, match=r"config\.json"):
        read_contents(tmp_path)
    with pytest.raises(InvalidCheckpoint, match="SHA256SUMS"):
        verify_checksums(tmp_path)


def test_ignored_modules_are_the_largest_without_anything_quantized() -> None:
    groups = [{"parent": "model.layers.0.mlp", "layers": ["down_proj"]}]
    tensors = ["model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight_packed", "lm_head.weight"]
    assert ignored_modules([*tensors, "model.layers.0.norm.weight"], groups) == ["lm_head", "model.embed_tokens"]


def test_every_text_and_vision_family_has_an_auto_class() -> None:
    assert auto_map("Qwen3ForCausalLM") == {"AutoModelForCausalLM": "modeling_quant_experts.Qwen3ForCausalLM"}
    assert "AutoModelForImageTextToText" in auto_map("Qwen3VLForConditionalGeneration")
    with pytest.raises(InvalidModel, match="NoSuchModel"):
        auto_map("NoSuchModel")
