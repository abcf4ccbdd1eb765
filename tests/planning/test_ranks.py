"""Ranks that nobody named fit into a few bits per weight, whatever the width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant_experts.checkpoint.layout import stored_group_bits
from quant_experts.model.groups import GroupPlan
from quant_experts.planning.recipe import Recipe
from quant_experts.spec.methods import DEFAULTS, PRESETS
from quant_experts.spec.ranks import LEAST_RANK, ROOM, Ranks, adapter_bits
from quant_experts.spec.specification import QuantizationSpec

SMOLLM2 = {"qkv": (576, (576, 192, 192)), "o": (576, (576,)), "gate_up": (576, (1536, 1536)), "down": (1536, (576,))}
"""SmolLM2-135M: label → width and outputs of the layers."""


def plan(width: int, outs: tuple[int, ...]) -> GroupPlan:
    layers = tuple(f"l{number}" for number in range(len(outs)))
    return GroupPlan(name="g", block=0, parent="p", label="l", layers=layers, width=width, outs=outs)


@pytest.mark.parametrize("group", SMOLLM2)
@pytest.mark.parametrize("method", PRESETS)
def test_every_method_stays_under_4_8_bits_on_a_narrow_model(method: str, group: str) -> None:
    one = plan(*SMOLLM2[group])
    spec = QuantizationSpec.preset(method, scheme="W4A6")
    assert stored_group_bits(one, spec, torch.float32) <= 4.8 * one.weights
    fixed = stored_group_bits(one, QuantizationSpec.preset(method, scheme="W4A6", method_version=2), torch.float32)
    assert (fixed > 4.8 * one.weights) == (spec.reconstruction != "none")


@pytest.mark.parametrize("method", ["qe", "aser"])
@given(rows=st.integers(1, 3000), width=st.integers(1, 3000), layers=st.integers(1, 3))
def test_the_ranks_fill_the_room_and_no_more(method: str, rows: int, width: int, layers: int) -> None:
    recipe = Recipe.of(method)
    ranks = recipe.ranks_for(rows=rows, width=width, layers=layers)
    besides = 16 * rows * (width // recipe.group_size_for(width)) + 128 * layers
    besides += 32 * width if recipe.smoothing != "none" else 0
    room = ROOM * rows * width - besides
    assert adapter_bits(rows, width, ranks, int8=True) <= max(room, 0)
    larger = Ranks(ranks.shared + 1, ranks.routed, ranks.experts)
    assert ranks.shared == min(rows, width, 1024) or adapter_bits(rows, width, larger, int8=True) > room
    assert ranks.routed >= LEAST_RANK or ranks.experts == 0


@pytest.mark.parametrize("version", DEFAULTS)
def test_what_was_asked_for_is_kept(version: int) -> None:
    asked = {"shared_rank": 5, "routed_rank": 3, "experts": 7}
    spec = QuantizationSpec.preset("qe", method_version=version, **asked)
    assert spec.ranks_for(rows=64, width=64, layers=1) == Ranks(5, 3, 7)
    assert QuantizationSpec.preset("qe", experts=2).ranks_for(rows=64, width=64, layers=1) == Ranks(0, 1, 2)
    assert QuantizationSpec.preset("qe", experts=0).ranks_for(rows=960, width=576, layers=3).experts == 0


def test_older_versions_keep_their_ranks() -> None:
    for version in (1, 2):
        old = QuantizationSpec.preset("qe", method_version=version)
        assert old.ranks_for(rows=960, width=576, layers=3) == Ranks(32, 32, 8)
        assert old.adapter_dtype == "bf16"
