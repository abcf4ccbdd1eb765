"""Give the trained model the activation outliers of large models, without changing what it computes.

The outliers are made, not learned: a factor goes into one weight and its inverse into the next, so that the model's
function stays the same while single activation channels stand far above the rest, as they do in large models
(LLM.int8(), SmoothQuant). Two kinds:

* *Static*: norm weights up, the columns that read them down. Such a channel is large for every token. One scaling
  per channel is all that is wrong with it, and that is exactly what SmoothQuant undoes.
* *Token by token*: rows of ``up_proj`` up and columns of ``down_proj`` down, so that the channel is large only where
  the gate opens; rows of ``v_proj`` up and columns of ``o_proj`` down, so that it is large only where heads attend to
  a token that has it. A static scaling of these channels pays with the tokens on which they are silent.

Every factor is a power of two. Scaling by it is exact in any floating dtype, so the logits stay equal to the last bit.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from quant_experts.seeding import generator


@dataclass(frozen=True)
class Strength:
    """``*_channels``: how many channels of each norm, of each MLP and of each attention's values; ``*_factor``: by how
    much, powers of two. Values are counted in key-value channels, each of which feeds several columns of ``o_proj``."""

    static_channels: int = 3
    static_factor: int = 16
    gated_channels: int = 16
    gated_factor: int = 16
    value_channels: int = 3
    value_factor: int = 8


DEFAULT = Strength()


@torch.no_grad()
def add_outliers(model: Any, *, seed: int = 0, strength: Strength = DEFAULT) -> None:
    """Change the decoder blocks of a Qwen2-VL in place; its function stays what it was."""
    text = model.config.get_text_config()
    repeats = text.num_attention_heads // text.num_key_value_heads
    head = text.hidden_size // text.num_attention_heads
    for index, block in enumerate(model.model.language_model.layers):
        attention, mlp = block.self_attn, block.mlp

        def draw(width: int, count: int, purpose: str, index: int = index) -> Tensor:
            return torch.randperm(width, generator=generator(seed, "outliers", str(index), purpose))[:count]

        readers = {
            "input": (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            "post": (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        }
        for purpose, (norm, layers) in readers.items():
            channels = draw(text.hidden_size, strength.static_channels, purpose)
            norm.weight[channels] *= strength.static_factor
            for layer in layers:
                layer.weight[:, channels] /= strength.static_factor
        gated = draw(text.intermediate_size, strength.gated_channels, "gated")
        _raise_rows(mlp.up_proj, gated, strength.gated_factor)
        mlp.down_proj.weight[:, gated] /= strength.gated_factor
        values = draw(head * text.num_key_value_heads, strength.value_channels, "value")
        _raise_rows(attention.v_proj, values, strength.value_factor)
        attention.o_proj.weight[:, _columns_of_values(values, head, repeats)] /= strength.value_factor


def _raise_rows(layer: nn.Linear, rows: Tensor, factor: int) -> None:
    layer.weight[rows] *= factor
    if layer.bias is not None:
        layer.bias[rows] *= factor


def _columns_of_values(values: Tensor, head: int, repeats: int) -> Tensor:
    """The input channels of ``o_proj`` that value channels feed: one in each of the ``repeats`` query heads of a
    key-value head. values: channels of ``v_proj``; returns (len(values) * repeats,)."""
    first = (values // head) * repeats * head + values % head
    return (first.unsqueeze(-1) + head * torch.arange(repeats)).flatten()


def write_variant(source: Path, directory: Path, *, seed: int = 0, strength: Strength = DEFAULT) -> Path:
    """The repository ``source`` with outliers, written to ``directory`` in the same dtype."""
    model = AutoModelForImageTextToText.from_pretrained(source)
    add_outliers(model, seed=seed, strength=strength)
    directory.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, directory / file.name)
    model.save_pretrained(directory)
    return directory
