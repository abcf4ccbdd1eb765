"""The planner repeats the library's table of families, so as not to load torch; here the two are held together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from quant_experts.model.blueprint import open_blueprint
from quant_experts.model.families.internvl_chat import native_directory
from quant_experts.model.families.overrides import TOWERS
from quant_experts.model.groups import plan_groups, skipped_layers, walked_modules
from quant_experts.model.manifest import Vision
from quant_experts.planning import families
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.headers import ModelHeaders
from quant_experts.planning.local import read_local
from quant_experts.planning.plan import make_plan
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import unknown_rows
from quant_experts.planning.shapes import shapes_of
from tests.models import FAMILIES as MADE
from tests.models import make_model
from tests.models_internvl_chat import make_internvl_chat


@pytest.mark.parametrize("name", [name for name, known in families.FAMILIES.items() if not known.is_found])
def test_a_head_is_tied_by_default_where_transformers_ties_it(name: str) -> None:
    assert CONFIG_MAPPING[name]().tie_word_embeddings is families.FAMILIES[name].tied


@pytest.mark.parametrize(
    ("family", "tied", "vision"),
    [
        *((family, False, "keep") for family in (*MADE, "whisper")),
        *((family, True, "keep") for family in ("qwen2_vl", "llava", "opt", "whisper")),
        *((family, False, "quantize") for family in TOWERS),
    ],
)
def test_the_groups_found_in_the_files_are_those_of_the_model_in_memory(
    family: str, tied: bool, vision: Vision, tmp_path: Path
) -> None:
    make_model(family, tmp_path, tied=tied)
    blueprint = open_blueprint(tmp_path, device=torch.device("cpu"))
    walked = plan_groups(blueprint.model, blueprint.manifest, vision=vision)
    planned = [group for block in walked for group in block]
    shapes = shapes_of(read_local(tmp_path), vision=vision)
    named = [(block[0].stack.name, block[0].index) for block in walked]
    assert [(block.stack, block.index) for block in shapes.blocks] == named
    assert [(g.name, g.label, g.layers, g.width, g.outs) for g in shapes.groups] == [
        (g.name, g.label, g.layers, g.width, g.outs) for g in planned
    ]
    assert shapes.bytes_before == blueprint.weights.shards.bytes
    inside = tuple(f"{module}." for block in walked for module in walked_modules(block))
    others = [name for name in blueprint.weights.names if not name.startswith(inside)]
    assert shapes.others == sum(blueprint.weights.bytes(name) for name in others)
    # Every linear layer that the walk leaves is spoken of, and with the same reason.
    left = skipped_layers(planned, blueprint.manifest)
    assert {reason.split(":")[0] for reason in left.values()} <= {kind.reason.split(":")[0] for kind in shapes.skipped}


@pytest.mark.parametrize("language", ["InternLM2ForCausalLM", "Qwen2ForCausalLM"])
def test_the_tower_of_an_original_repository_is_found_under_its_own_names(language: str, tmp_path: Path) -> None:
    make_internvl_chat(tmp_path / "original", language)
    blueprint = open_blueprint(native_directory(tmp_path / "original", tmp_path / "native"), device=torch.device("cpu"))
    walked = plan_groups(blueprint.model, blueprint.manifest, vision="quantize")
    shapes = shapes_of(read_local(tmp_path / "original"), vision="quantize")
    assert [(g.name, g.label, g.layers, g.width, g.outs) for g in shapes.groups] == [
        (g.name, g.label, g.layers, g.width, g.outs) for block in walked for g in block
    ]
    assert [(block.stack, block.index) for block in shapes.blocks] == [(b[0].stack.name, b[0].index) for b in walked]
    inside = tuple(f"{module}." for block in walked for module in walked_modules(block))
    others = [name for name in blueprint.weights.names if not name.startswith(inside)]
    assert shapes.others == sum(blueprint.weights.bytes(name) for name in others)


def test_a_float32_copy_of_a_bfloat16_model_is_counted_in_bfloat16(tmp_path: Path) -> None:
    make_model("llama", tmp_path, dtype=torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    shapes = shapes_of(read_local(tmp_path))
    assert (shapes.dtype, shapes.item) == ("BF16", 2)
    assert shapes.others * 2 == shapes.bytes_before - sum(block.before for block in shapes.blocks)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelHeaders:
    return read_local(make_model("llama", tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba9"}, "model_type 'mamba9' is not supported; supported: qwen2_vl"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"model_type": "whisper", "architectures": None}, "no tensor of the model belongs to encoder block 0"),
        ({"architectures": ["LlamaForTokenClassification"]}, "expected LlamaForCausalLM"),
        ({"architectures": 7}, "expected LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized \\(gptq\\)"),
        ({"quantization_config": "gptq"}, "already quantized"),
        ({"dtype": "float64"}, "float32, float16 and bfloat16 are supported"),
        ({"num_hidden_layers": 3}, "config.json says 3 decoder blocks, the files hold tensors of 2"),
        ({"model_type": "phi3", "architectures": None}, "decoder block 0 has no layer self_attn.qkv_proj"),
        ({"model_type": "llava", "architectures": None, "text_config": {"model_type": "mixtral"}}, "'mixtral'"),
        ({"model_type": "opt", "architectures": None, "word_embed_proj_dim": 1}, "project their embeddings"),
    ],
)
def test_a_configuration_that_cannot_be_walked_is_refused(
    llama: ModelHeaders, changes: dict[str, object], message: str
) -> None:
    config = {name: value for name, value in {**llama.config, **changes}.items() if value is not None}
    with pytest.raises(Unreadable, match=message):
        shapes_of(ModelHeaders(config, llama.tensors, 1, {}))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("model.layers.1.", "config.json says 2 decoder blocks, the files hold tensors of 1"),
        ("model.layers.0.", "no tensor of the model belongs to decoder block 0"),
        ("model.layers.1.self_attn.o_proj", "decoder block 1 has no layer self_attn.o_proj"),
        ("model.embed_tokens", "token embeddings"),
    ],
)
def test_files_that_lack_something_are_refused(llama: ModelHeaders, lost: str, message: str) -> None:
    left = {key: tensor for key, tensor in llama.tensors.items() if not key.startswith(lost)}
    with pytest.raises(Unreadable, match=message):
        shapes_of(ModelHeaders(llama.config, left, 1, {}))


@pytest.mark.parametrize(
    ("options", "pointer", "message"),
    [({"vision": "quantize"}, "/options/vision", "has no vision tower; it works for qwen2_vl, qwen2_5_vl, qwen3_vl")],
)
def test_a_tower_that_is_not_there_is_refused(
    llama: ModelHeaders, options: dict[str, Any], pointer: str, message: str
) -> None:
    (refusal,) = make_plan(llama, Recipe.of(**options), unknown_rows(vision=False), from_hub=False).refusals
    assert (refusal.code, refusal.pointer) == ("invalid_spec", pointer)
    assert message in refusal.message


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "auto", "target": {"max_kl": 0.1}},
        {"smoothing": "mbq", "sensitive": {"share": 0.2, "weight_bits": 8}},
    ],
)
def test_what_looks_at_the_whole_model_first_does_so_where_there_are_two_stacks(
    options: dict[str, Any], tmp_path: Path
) -> None:
    speech = read_local(make_model("whisper", tmp_path))
    assert make_plan(speech, Recipe.of(**options), unknown_rows(vision=False), from_hub=False).refusals == ()
