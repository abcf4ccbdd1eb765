"""Stacks and input groups are found in the model, whatever its type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    PreTrainedConfig,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from quant_experts.errors import UnsupportedModel
from quant_experts.model.carried import apart, hand_on, together
from quant_experts.model.families.stack import Carried, State
from quant_experts.model.manifest import Manifest, manifest_of
from quant_experts.model.mixtures import unstack_mixtures
from quant_experts.planning.layer_rules import label_of
from quant_experts.run.checks import kept_warnings
from quant_experts.spec.specification import QuantizationSpec
from tests.every_type.check import CAUSAL, auto_class
from tests.every_type.tiny import tiny_config

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def manifest(config: PreTrainedConfig) -> Manifest:
    with torch.device("meta"):
        model = auto_class("causal" if config.model_type in CAUSAL else "image-text-to-text").from_config(config)
    unstack_mixtures(model)
    return manifest_of(model.eval())


def test_attention_and_mlp_that_run_in_parallel_are_one_group() -> None:
    first, *others = manifest(CohereConfig(**SMALL)).decoder.each[1]
    layers = [f"self_attn.{name}_proj" for name in "qkv"] + ["mlp.gate_proj", "mlp.up_proj"]
    assert first == ("", "q_k_v_gate_up", tuple(layers))
    assert others == [("self_attn", "o", ("o_proj",)), ("mlp", "down", ("down_proj",))]


def test_blocks_of_one_model_may_differ() -> None:
    config = Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])
    convolution, attention = manifest(config).decoder.each
    assert convolution[:2] == (("conv", "in", ("in_proj",)), ("conv", "out", ("out_proj",)))
    assert attention[:2] == (("self_attn", "qkv", ("q_proj", "k_proj", "v_proj")), ("self_attn", "out", ("out_proj",)))


def test_transposed_layers_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"transformer\.h\.\*\.mlp.*Conv1D, not a linear layer"):
        manifest(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=128))


def test_a_layer_whose_weight_the_model_reads_itself_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * torch.nn.functional.linear(x, self.up_proj.weight))

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    found = manifest(LlamaConfig(**SMALL))
    assert found.decoder.each[0][2] == ("mlp", "gate", ("gate_proj",))
    assert found.skipped["model.layers.*.mlp.up_proj"] == "the model's code reads its weight itself"
    assert kept_warnings(QuantizationSpec(scheme="W4A8"), found) == [
        "kept in full precision: model.layers.*.mlp.up_proj (the model's code reads its weight itself)"
    ]


@pytest.mark.parametrize(
    ("layers", "label"),
    [
        (("q_proj", "k_proj", "v_proj"), "qkv"),
        (("qkv_proj",), "qkv"),
        (("gate_proj", "up_proj"), "gate_up"),
        (("k_proj", "v_proj"), "kv"),
        (("mlp.0",), "mlp_0"),
        (("linear_fc1",), "fc1"),
    ],
)
def test_a_label_says_which_layers_a_group_has(layers: tuple[str, ...], label: str) -> None:
    assert label_of(layers) == label


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("hy_v4", ("1",)),
        (
            "gemma4_text",
            tuple(f"shared_kv_states.{each}_attention.{i}" for each in ("sliding", "full") for i in (0, 1)),
        ),
        ("llama", ()),
    ],
)
def test_what_blocks_hand_on_beside_their_states_is_found(kind: str, where: tuple[str, ...]) -> None:
    state = manifest(tiny_config(kind)).decoder.state
    assert tuple(piece.where for piece in (state.carried if state else ())) == where


def test_what_blocks_hand_on_is_stored_behind_their_states_and_comes_back() -> None:
    keys, chosen, states = torch.rand(1, 2, 5, 3).bfloat16(), torch.arange(15).view(1, 5, 3), torch.rand(4, 1, 5, 8)
    pieces = (Carried("shared.full.0", (1, 2, 0, 3), "bfloat16"), Carried("2", (1, 0, 0), "int64"))
    state = State((4, 1, 0, 8), "float32", (*pieces, Carried("shared.sliding.0", (1, 0, 7), "float32")))
    stored = together(states, (states, None, chosen), {"shared": {"full": (keys,)}}, state)
    assert state.stored(5) == ("float32", tuple(stored.shape))
    assert State((1, 0, 8), "bfloat16", pieces[:1]).stored(5) == ("bfloat16", (1, 5, 14))
    again, carried = apart(stored, state)
    arguments: dict[str, Any] = {"shared": {}}
    others = [None, None]
    hand_on(carried, arguments, others)
    assert torch.equal(again, states)
    assert others[0] is None
    assert torch.equal(others[1], chosen)  # type: ignore[arg-type]  # put there
    assert list(arguments["shared"]) == ["full"]
    assert torch.equal(arguments["shared"]["full"][0], keys)


def test_a_model_whose_blocks_read_the_tokens_is_given_them() -> None:
    assert manifest(tiny_config("deepseek_v4")).decoder.takes_ids
    assert not manifest(tiny_config("llama")).decoder.takes_ids


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("hrm_text", r"model\.L_module\.layers: block 0 reads what block \d+ has put out"),
        ("xlm", r"transformer\.ffns: what runs behind transformer reads what block 0 has put out"),
        ("diffusion_gemma", r"run on states of shape \[1, 256, 128\] whatever the row's tokens are"),
        ("prophetnet", r"what runs behind prophetnet\.decoder reads output 1 of it beside last_hidden_state"),
    ],
)
def test_a_stack_whose_blocks_do_not_follow_one_another_is_refused(kind: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        manifest(tiny_config(kind))
