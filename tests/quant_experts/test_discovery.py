"""Stacks and input groups are found in the model, whatever its type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    PreTrainedConfig,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from quant_experts.errors import UnsupportedModel
from quant_experts.model.manifest import Manifest, manifest_of
from quant_experts.planning.layer_rules import label_of
from quant_experts.run.checks import kept_warnings
from quant_experts.spec.specification import QuantizationSpec

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
        model = AutoModelForCausalLM.from_config(config)
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
