"""The planner tells input groups from tensor names as they are found in the model, for every type that it knows."""

from __future__ import annotations

import datetime
import os

import pytest

from quant_experts.planning.errors import Unreadable
from quant_experts.planning.found_groups import decoder_prefix, groups_in
from quant_experts.planning.headers import ModelHeaders, Tensor
from quant_experts.planning.known_types import KNOWN_TYPES
from quant_experts.planning.layer_names import in_memory_names
from quant_experts.planning.mixtures import experts_apart, share_of_tokens
from quant_experts.planning.shapes import shapes_of
from tests.every_type.known import difference

PARTS = 3


def of_today() -> list[str]:
    """A third of the types, another one every day; ``QE_ALL_TYPES=1`` takes all."""
    kinds = [kind for kind, *_ in KNOWN_TYPES]
    return kinds if os.environ.get("QE_ALL_TYPES") else kinds[datetime.date.today().toordinal() % PARTS :: PARTS]


@pytest.mark.parametrize("kind", of_today())
def test_the_groups_of_a_known_type_are_those_of_the_model(kind: str) -> None:
    assert difference(kind) is None


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("deepseek_v2", {"q_lora_rank": None}),
        ("falcon", {"new_decoder_architecture": True}),
        ("falcon", {"parallel_attn": False}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt2", {"add_cross_attention": True}),
    ],
)
def test_what_the_configuration_changes_of_a_type_changes_its_groups(kind: str, changes: dict[str, object]) -> None:
    assert difference(kind, changes) is None


def matrix(rows: int, columns: int) -> Tensor:
    return Tensor("BF16", (rows, columns))


def test_a_block_with_one_norm_runs_attention_and_mlp_in_parallel() -> None:
    block = {
        **{f"self_attn.{name}_proj.weight": matrix(64, 64) for name in "qkvo"},
        **{f"mlp.{name}_proj.weight": matrix(96, 64) for name in ("gate", "up")},
        "mlp.down_proj.weight": matrix(64, 96),
        "input_layernorm.weight": Tensor("BF16", (64,)),
    }
    layers = (*(f"self_attn.{name}_proj" for name in "qkv"), "mlp.gate_proj", "mlp.up_proj")
    assert groups_in(block)[0] == ("", "q_k_v_gate_up", layers)
    two = {**block, "post_attention_layernorm.weight": Tensor("BF16", (64,))}
    assert groups_in(two)[0] == ("self_attn", "qkv", ("q_proj", "k_proj", "v_proj"))


def test_a_tower_is_not_taken_for_the_decoder() -> None:
    tensors = {
        "model.visual.blocks.0.attn.qkv.weight": matrix(999, 999),
        "model.language_model.layers.0.mlp.up_proj.weight": matrix(64, 64),
    }
    assert decoder_prefix(tensors) == "model.language_model.layers"


def test_a_block_gets_the_names_and_shapes_that_it_has_in_memory() -> None:
    stored = {
        "attn.wqkv.weight": matrix(96, 64),
        "attn.wqkv.bias": Tensor("BF16", (96,)),
        "mlp.gate_proj.weight": matrix(160, 64),
        "mlp.up_proj.weight": matrix(160, 64),
        "mlp.c_proj.weight": matrix(160, 64),
        "mlp.c_proj.bias": Tensor("BF16", (64,)),
    }
    cut = (r"\.attn\.wqkv\.", ".attn.q.", ".attn.k.", ".attn.v.")
    rules = (cut, *((rf"\.{name}_proj\.weight", ".gate_up_proj.weight") for name in ("gate", "up")))
    text = {"num_attention_heads": 4, "num_key_value_heads": 1}
    rows = {"q": 64, "k": 16, "v": 16}
    assert in_memory_names(stored, rules, text) == {
        **{f"attn.{name}.weight": matrix(each, 64) for name, each in rows.items()},
        **{f"attn.{name}.bias": Tensor("BF16", (each,)) for name, each in rows.items()},
        "mlp.gate_up_proj.weight": matrix(320, 64),
        "mlp.c_proj.weight": matrix(64, 160),  # its bias says that it is (in, out)
        "mlp.c_proj.bias": Tensor("BF16", (64,)),
    }
    with pytest.raises(Unreadable, match=r"attn\.wqkv\.weight of shape \[96, 64\] does not divide into heads"):
        in_memory_names(stored, rules, {"num_attention_heads": 7})


def test_stacks_of_experts_in_a_layout_that_is_not_known_are_refused_by_name() -> None:
    tensors = {"model.layers.0.mlp.experts.mixed_proj": Tensor("BF16", (4, 64, 96))}
    config = {"model_type": "cohere", "architectures": ["CohereForCausalLM"]}
    with pytest.raises(
        Unreadable, match=r"model\.layers\.0\.mlp\.experts\.mixed_proj belongs to the experts of a mixture"
    ):
        shapes_of(ModelHeaders(config, tensors, 1, {}))


def test_experts_alone_stacked_or_transposed_are_the_same_groups() -> None:
    alone = {f"mlp.experts.{i}.{name}_proj.weight": matrix(96, 64) for i in range(3) for name in ("gate", "up")}
    alone |= {
        f"block_sparse_moe.experts.{i}.w2.weight".replace("block_sparse_moe", "mlp"): matrix(64, 96) for i in range(3)
    }
    stacked = {
        "mlp.experts.gate_up_proj": Tensor("BF16", (3, 192, 64)),
        "mlp.experts.down_proj": Tensor("BF16", (3, 64, 96)),
    }
    turned = {name: Tensor("BF16", (3, *tensor.shape[:0:-1])) for name, tensor in stacked.items()}
    expected = {f"mlp.experts.gate_up_proj.{i}.weight": matrix(192, 64) for i in range(3)}
    expected |= {f"mlp.experts.down_proj.{i}.weight": matrix(64, 96) for i in range(3)}
    for stored in (alone, stacked, turned):
        assert experts_apart(stored) == expected
    assert ("mlp.experts", "down_proj_2", ("down_proj.2",)) in groups_in(expected)


def test_an_expert_gets_its_share_of_the_tokens() -> None:
    assert share_of_tokens({"num_experts_per_tok": 2}, 8) == 0.25
    assert share_of_tokens({}, 8) == 0.125
    assert share_of_tokens({"num_experts_per_tok": 4}, 2) == 1


def test_a_type_that_nobody_has_looked_at_is_refused() -> None:
    with pytest.raises(Unreadable, match=r"model_type 'mamba9' is not supported; supported: qwen2_vl, .* others"):
        shapes_of(ModelHeaders({"model_type": "mamba9"}, {"a": matrix(2, 2)}, 1, {}))
