"""What is not found in a model but written down, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

from quant_experts.model.families import towers
from quant_experts.model.families.stack import Stack

LABELS: Mapping[str, Mapping[str, str]] = {"opt": {"out": "o"}}
"""``model_type`` → label that is found → the one that checkpoints have had since before groups were found."""

PLAIN: Mapping[str, str] = {
    "FalconLinear": "x @ weight.T + bias, in two steps so that bfloat16 rounds as in the original"
}
"""Subclasses of ``nn.Linear`` that compute what it computes → what they add."""

TOWERS: Mapping[str, Stack] = {
    "qwen2_vl": towers.QWEN2_VL,
    "qwen2_5_vl": towers.QWEN2_5_VL,
    "qwen3_vl": towers.QWEN3_VL,
    "internvl": towers.INTERNVL,
}
"""Vision towers that can be walked: what lies behind their blocks, and what is read again there, was looked up."""
