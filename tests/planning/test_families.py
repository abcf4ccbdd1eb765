"""The planner repeats the library's table of families, so as not to load torch; here the two are held together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from planning import families
from planning.errors import Unreadable
from planning.headers import ModelHeaders
from planning.local import read_local
from planning.plan import make_plan
from planning.recipe import Recipe
from planning.rows import unknown_rows
from planning.shapes import shapes_of
from quant_experts.blueprint import open_blueprint
from quant_experts.families.table import FAMILIES, ORIGINALS
from quant_experts.groups import plan_groups, skipped_layers
from tests.models import FAMILIES as MADE
from tests.models import make_model


def test_the_planner_knows_the_families_that_the_library_walks() -> None:
    library = {
        name: (family.model_class, family.language_model, family.vision is not None, family.groups, family.text_model)
        for name, family in FAMILIES.items()
        if name not in families.UNPLANNED
    }
    planner = {
        name: (family.model_class, family.stack, family.vision, family.groups, family.any_text)
        for name, family in families.FAMILIES.items()
    }
    assert planner == library
    assert planner.keys() | families.ORIGINALS.keys() == library.keys() | ORIGINALS.keys()
    assert families.ORIGINALS == ORIGINALS
    assert {name: FAMILIES[name].model_class for name in families.UNPLANNED} == families.UNPLANNED


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_head_is_tied_by_default_where_transformers_ties_it(name: str) -> None:
    assert CONFIG_MAPPING[name]().tie_word_embeddings is families.FAMILIES[name].tied


@pytest.mark.parametrize(
    ("family", "tied"),
    [*((family, False) for family in MADE), *((family, True) for family in ("qwen2_vl", "llava", "opt"))],
)
def test_the_groups_found_in_the_files_are_those_of_the_model_in_memory(
    family: str, tied: bool, tmp_path: Path
) -> None:
    make_model(family, tmp_path, tied=tied)
    blueprint = open_blueprint(tmp_path, device=torch.device("cpu"))
    planned = [group for block in plan_groups(blueprint.model, blueprint.family) for group in block]
    shapes = shapes_of(read_local(tmp_path))
    assert [(g.name, g.label, g.layers, g.width, g.outs) for g in shapes.groups] == [
        (g.name, g.label, g.layers, g.width, g.outs) for g in planned
    ]
    assert shapes.bytes_before == blueprint.weights.shards.bytes
    inside = tuple(f"{blueprint.family.language_model}.layers.{block}." for block in range(blueprint.blocks))
    others = [name for name in blueprint.weights.names if not name.startswith(inside)]
    assert shapes.others == sum(blueprint.weights.bytes(name) for name in others)
    # Every linear layer that the walk leaves is spoken of, and with the same reason.
    left = skipped_layers(blueprint.model, planned, blueprint.family)
    assert {reason.split(":")[0] for reason in left.values()} <= {kind.reason.split(":")[0] for kind in shapes.skipped}


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
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported: qwen2_vl"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"model_type": "whisper"}, "can be quantized, but a plan does not know yet what its encoder takes"),
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


def test_a_plan_does_not_pretend_to_know_a_vision_tower(llama: ModelHeaders) -> None:
    with pytest.raises(Unreadable, match="quantizing the vision tower takes; submit the job without a plan") as raised:
        make_plan(llama, Recipe.of(vision="quantize"), unknown_rows(vision=False), from_hub=False)
    assert raised.value.refusal.pointer == "/options/vision"
