"""Configurations of the tiny text-only models. Every family gets what is unusual about it: caps, windows, biases."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

PLAIN: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma": GemmaConfig,
    "phi3": Phi3Config,
}
TEXT_FAMILIES = (*PLAIN, "gemma2", "gemma3_text", "opt")

WINDOW = 12
"""Tokens of a sliding window: shorter than the test rows, so that it matters."""


def text_config(family: str, text: dict[str, Any]) -> PreTrainedConfig:
    """``text``: what a Llama configuration takes, tie_word_embeddings included."""
    if family == "opt":
        renamed = {"intermediate_size": "ffn_dim"}
        left_out = ("num_key_value_heads", "head_dim")
        return OPTConfig(**{renamed.get(key, key): value for key, value in text.items() if key not in left_out})
    if family == "gemma2":
        caps = {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 0.2}
        return Gemma2Config(**text, **caps, query_pre_attn_scalar=32, sliding_window=WINDOW)
    if family == "gemma3_text":
        return gemma3_text(text, final_logit_softcapping=0.5)
    if family == "phi3":
        return Phi3Config(**{key: value for key, value in text.items() if key != "head_dim"})
    return PLAIN[family](**text)


def gemma3_text(text: dict[str, Any], **more: Any) -> Gemma3TextConfig:
    """Windows and full attention in turn, each with rotary tables of its own."""
    kinds = ["sliding_attention", "full_attention"] * text["num_hidden_layers"]
    return Gemma3TextConfig(
        **text,
        **more,
        query_pre_attn_scalar=32,
        sliding_window=WINDOW,
        layer_types=kinds[: text["num_hidden_layers"]],
    )
