"""Exports load with nothing of ours, and give what the checkpoint gives but for what they say they lose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from torch import Tensor

from quant_experts.checkpoint.verify import verify_checksums
from quant_experts.commands.export import command
from quant_experts.errors import InvalidSpec
from quant_experts.export import FORMATS, export
from quant_experts.fit.fitted import FittedGroup
from quant_experts.forward.modeling_quant_experts import UNQUANTIZED_BITS, InputGroup
from quant_experts.model.groups import GroupPlan
from quant_experts.spec.exports import EXPORT_FORMATS
from tests.quant_experts.checkpoints import drawn_group, quantized_parts, written

IDS = torch.tensor([[5, 9, 200, 31, 7, 77, 13, 2]])
SMALLEST_ERROR = 1e-4
"""Relative, of float32 logits: sums in another order."""


def plain_group(plan: GroupPlan, weights: list[Tensor], seed: int) -> FittedGroup:
    """Integers and scales alone, of the down projections with one scale per row."""
    fitted = drawn_group(plan, weights, seed)
    nothing: dict[str, Any] = {
        "smooth": None, "shared_down": None, "shared_up": (), "routed_down": None, "routed_up": (), "router": None,
        "rotation": None,
    }  # fmt: skip
    return replace(fitted, activation_bits=UNQUANTIZED_BITS, **nothing)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=IDS).logits
    return result


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


def loaded(directory: Path) -> Any:
    """With the class of transformers, which has to find every tensor in the files."""
    config = json.loads((directory / "config.json").read_text())
    assert "auto_map" not in config
    model, problems = getattr(transformers, config["architectures"][0]).from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(problems.values()), problems
    return model


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_dequantized_is_the_checkpoint_without_routed_experts_and_activation_rounding(
    family: str, tmp_path: Path
) -> None:
    parts = quantized_parts(family, tmp_path, dtype=torch.float32)
    checkpoint = written(parts, tmp_path / "out")

    done = export(checkpoint, "dequantized", tmp_path / "plain")

    for module in parts.model.modules():
        if isinstance(module, InputGroup):
            module.activation_bits, module.routed_down, module.router = UNQUANTIZED_BITS, None, None
    assert error(logits(loaded(done.directory)), logits(parts.model)) < SMALLEST_ERROR
    assert done.losses == (
        "activations stay in full precision instead of A8",
        "routed experts are left out: which one corrects a token depends on the token",
    )
    assert verify_checksums(done.directory) == len(done.files) - 1


def test_compressed_tensors_give_what_the_checkpoint_gives(tmp_path: Path) -> None:
    parts = quantized_parts("llava", tmp_path, dtype=torch.float32, draw=plain_group)
    checkpoint = written(parts, tmp_path / "out")

    done = export(checkpoint, "compressed-tensors", tmp_path / "ct")

    assert done.loaded
    assert done.losses == ()
    assert error(logits(loaded(done.directory)), logits(parts.model)) < SMALLEST_ERROR


def test_what_compressed_tensors_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = written(quantized_parts("llama", tmp_path), tmp_path / "out")

    answer = CliRunner().invoke(
        command, [str(checkpoint), "--to", "compressed-tensors", "--output", str(tmp_path / "ct")]
    )

    assert isinstance(answer.exception, InvalidSpec)
    assert str(answer.exception).startswith(
        "model.layers.0.self_attn.qkv has smoothing and a shared expert and routed experts, which compressed-tensors"
    )
    assert sorted(path.name for path in tmp_path.iterdir() if "ct" in path.name) == []


def test_every_format_has_its_name_in_the_spec() -> None:
    assert sorted(EXPORT_FORMATS) == sorted(FORMATS)
