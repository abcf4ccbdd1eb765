"""Recipes of llm-compressor, for the scripts that run inside its environment."""

from __future__ import annotations

from typing import Any

from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

IGNORE = ["lm_head", "re:.*visual.*"]
BLOCK = r"re:.*layers\.\d+\."
ATTENTION = [f"{BLOCK}self_attn.{name}$" for name in ("q_proj", "k_proj", "v_proj")]
MLP = [f"{BLOCK}mlp.{name}$" for name in ("gate_proj", "up_proj")]
NORMS = [(f"{BLOCK}input_layernorm$", ATTENTION), (f"{BLOCK}post_attention_layernorm$", MLP)]
PRODUCTS = [
    (f"{BLOCK}self_attn.v_proj$", [f"{BLOCK}self_attn.o_proj$"]),
    (f"{BLOCK}mlp.up_proj$", [f"{BLOCK}mlp.down_proj$"]),
]
"""Where scalings can go in a decoder of Llama's kind, as llm-compressor has it for Llama and Qwen2.5-VL; its tables do
not list Qwen2-VL."""


def recipe(method: str, scheme: str, group_size: int) -> list[Any]:
    """The modifiers of a method at a scheme such as ``W4A8``, symmetric, weights in groups, activations per token.
    ``smoothquant:0.5+gptq`` scales and then rounds by GPTQ."""
    weight_bits, activation_bits = (int(part) for part in scheme[1:].split("A"))
    group: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": {
            "num_bits": weight_bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": group_size,
        },
    }
    if activation_bits != 16:
        group["input_activations"] = {
            "num_bits": activation_bits,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    quantization: dict[str, Any] = {"config_groups": {"group_0": group}, "ignore": IGNORE}
    first, _, second = method.partition("+")
    if second:
        return [*recipe(first, scheme, group_size)[:-1], *recipe(second, scheme, group_size)]
    name, _, strength = method.partition(":")
    if name == "gptq":
        return [GPTQModifier(**quantization)]
    rounded = QuantizationModifier(**quantization)
    if name == "awq":
        mappings = [AWQMapping(smooth, balance) for smooth, balance in NORMS + PRODUCTS]
        return [AWQModifier(mappings=mappings), rounded]
    if name == "smoothquant":
        mappings = [[balance, smooth] for smooth, balance in NORMS]
        return [SmoothQuantModifier(smoothing_strength=float(strength), mappings=mappings), rounded]
    if name == "rtn":
        return [rounded]
    raise SystemExit(f"method {method!r} is not known: rtn, gptq, awq, smoothquant:<strength>, or two with + between")
