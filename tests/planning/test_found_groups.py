"""The planner tells input groups from tensor names as they are found in the model, for every type that it knows."""

from __future__ import annotations

import datetime
import os

import pytest

from quant_experts.planning.errors import Unreadable
from quant_experts.planning.found_groups import decoder_prefix, groups_in
from quant_experts.planning.headers import ModelHeaders, Tensor
from quant_experts.planning.known_types import KNOWN_TYPES
from quant_experts.planning.shapes import shapes_of
from tests.every_type.known import difference

PARTS = 6


def of_today() -> list[str]:
    """A sixth of the types, another one every day; ``QE_ALL_TYPES=1`` takes all."""
    kinds = [kind for kind, *_ in KNOWN_TYPES]
    return kinds if os.environ.get("QE_ALL_TYPES") else kinds[datetime.date.today().toordinal() % PARTS :: PARTS]


@pytest.mark.parametrize("kind", of_today())
def test_the_groups_of_a_known_type_are_those_of_the_model(kind: str) -> None:
    assert difference(kind) is None


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


def test_a_mixture_of_a_known_type_is_refused_by_its_experts() -> None:
    tensors = {"model.layers.0.mlp.experts.gate_up_proj": Tensor("BF16", (4, 64, 96))}
    config = {"model_type": "cohere", "architectures": ["CohereForCausalLM"]}
    with pytest.raises(Unreadable, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj is of a mixture's experts"):
        shapes_of(ModelHeaders(config, tensors, 1, {}))


def test_a_type_that_nobody_has_looked_at_is_refused() -> None:
    with pytest.raises(Unreadable, match=r"model_type 'mamba9' is not supported; supported: qwen2_vl, .* others"):
        shapes_of(ModelHeaders({"model_type": "mamba9"}, {"a": matrix(2, 2)}, 1, {}))
