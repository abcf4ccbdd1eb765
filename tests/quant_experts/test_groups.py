"""The input groups of every family, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quant_experts.model.blueprint import open_blueprint
from quant_experts.model.groups import plan_groups, skipped_layers
from tests.models import FAMILIES, VISION_FAMILIES, make_model

CPU = torch.device("cpu")


LABELS = {"opt": ["qkv", "o", "fc1", "fc2"]}
FIRST = {"phi3": (("qkv_proj",), (256,))}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_has_four_input_groups_in_the_order_in_which_they_run(family: str, tmp_path: Path) -> None:
    blueprint = open_blueprint(make_model(family, tmp_path, blocks=3), device=CPU)
    plans = plan_groups(blueprint.model, blueprint.manifest)
    labels = LABELS.get(family, ["qkv", "o", "gate_up", "down"])
    assert [[plan.label for plan in block] for block in plans] == [labels] * 3
    attention, mlp_down = plans[1][0], plans[1][3]
    assert attention.name == f"{blueprint.manifest.language_model}.layers.1.self_attn.qkv"
    keys = 128 if family == "opt" else 64  # OPT has as many key heads as query heads
    layers, outs = FIRST.get(family, (("q_proj", "k_proj", "v_proj"), (128, keys, keys)))
    assert (attention.layers, attention.width, attention.outs) == (layers, 128, outs)
    assert (mlp_down.width, mlp_down.outs, mlp_down.weights) == (192, (128,), 192 * 128)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_skipped_has_a_reason(family: str, tmp_path: Path) -> None:
    blueprint = open_blueprint(make_model(family, tmp_path), device=CPU)
    plans = [plan for block in plan_groups(blueprint.model, blueprint.manifest) for plan in block]
    skipped = skipped_layers(plans, blueprint.manifest)
    assert "output head" in skipped["lm_head"]
    assert any("vision tower" in reason for reason in skipped.values()) is (family in VISION_FAMILIES)
    assert not any("proj" in name and "language_model" in name for name in skipped)


def test_whispers_decoder_reads_the_encoder_through_a_group_of_its_own(tmp_path: Path) -> None:
    blueprint = open_blueprint(make_model("whisper", tmp_path), device=CPU)
    plans = plan_groups(blueprint.model, blueprint.manifest)
    labels = [[plan.name.removeprefix(f"{plan.stack.block(plan.index or 0)}.") for plan in block] for block in plans]
    attention = ["self_attn.qkv", "self_attn.out"]
    cross = ["encoder_attn.q", "encoder_attn.kv", "encoder_attn.out"]
    assert labels == [[*attention, "fc1", "fc2"]] * 2 + [[*attention, *cross, "fc1", "fc2"]] * 2
    assert [(block[0].stack.name, block[0].block, block[0].index) for block in plans] == [
        *(("encoder", 0, 0), ("encoder", 1, 1), ("decoder", 2, 0), ("decoder", 3, 1)),
    ]
    assert [plan.label for plan in plans[2] if plan.reads_audio] == ["kv"]
    assert all(plan.reads_audio for plan in plans[0])
    skipped = skipped_layers([plan for block in plans for plan in block], blueprint.manifest)
    assert skipped == {"proj_out": "output head: kept in full precision"}
