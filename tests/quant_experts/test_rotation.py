"""A rotation is orthogonal, changes nothing before rounding, and lowers the error behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quant_experts.checkpoint.layout import group_config
from quant_experts.fit import smoothing
from quant_experts.fit.fit_group import evaluate_group, fit_group
from quant_experts.fit.quantizer import round_tokens
from quant_experts.fit.rotation import CLIP, rotation_of
from quant_experts.forward.modeling_quant_experts import QuantExpertsConfig, QuantExpertsQuantizer, rotate
from quant_experts.spec.specification import QuantizationSpec
from tests.quant_experts.problems import problem_of
from tests.quant_experts.test_modeling import PLAN, Tiny, fitted_group
from tests.quant_experts.tokens import mixture, observe, spec, weights

SIZES = {576: (9, 64), 1536: (3, 512), 4096: (1, 4096), 8960: (35, 256), 18944: (37, 512), 8 * 67: (1, 8), 15: (15, 1)}


@pytest.mark.parametrize("width", [576, 1536, 15, 8 * 67])
def test_a_rotation_is_orthogonal_its_own_inverse_and_leaves_no_channel_alone(width: int) -> None:
    sizes = rotation_of(width, 8).sizes
    matrix = rotate(torch.eye(width, dtype=torch.float64), sizes)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    block = sizes[0] * sizes[1]
    assert float(matrix.abs().max()) <= (2 / block) ** 0.5 + 1e-12
    assert torch.equal(matrix[:block, block:], torch.zeros(block, width - block, dtype=torch.float64))


def test_every_width_has_a_rotation_and_usual_ones_have_one_over_all_channels() -> None:
    assert {width: rotation_of(width, 8).sizes for width in SIZES} == SIZES


def test_before_rounding_a_rotated_group_is_the_group() -> None:
    x = torch.randn(20, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 30
    weight = torch.randn(40, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale, sizes = torch.linspace(-2, 2, 96, dtype=torch.float64), rotation_of(96, 4).sizes
    rotated = rotate(x / scale, sizes) @ rotate(weight * scale, sizes).T
    torch.testing.assert_close(rotated, x @ weight.T, rtol=1e-10, atol=1e-10)

    problem = problem_of(method="rtn", smoothing="rotation")
    found = smoothing.get("rotation").smooth(problem)
    assert found.scale is not None
    assert 0.3 < float((found.scale < 0).float().mean()) < 0.7
    base = problem.scaled(found.scale).rotated_by(found.rotation).of_the_base()
    before = (problem.weight @ problem.second_moment * problem.weight).sum(-1)
    torch.testing.assert_close((base.weight @ base.second_moment * base.weight).sum(-1), before, rtol=1e-3, atol=1e-2)


def test_a_clipped_token_has_its_largest_integer_at_so_many_root_mean_squares() -> None:
    x = torch.randn(50, 512, generator=torch.Generator().manual_seed(0))
    clipped, plain = (float((round_tokens(x, 4, clip) - x).square().mean()) for clip in (CLIP[4], None))
    assert clipped < 0.8 * plain
    limit = CLIP[4] * x.square().mean(-1).sqrt()
    torch.testing.assert_close(round_tokens(x, 4, CLIP[4]).abs().amax(-1), limit)
    even = torch.ones(1, 512)  # none beyond: nothing is cut off
    assert torch.equal(round_tokens(even, 4, CLIP[4]), even)


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_outliers_cost_less_behind_a_rotation_and_the_search_finds_it_from_version_4_on(rounding: str) -> None:
    x, vision = mixture(600)
    layers = weights()
    x[:, 40] *= 20
    found = {}
    for version, choice in ((3, "search"), (4, "search"), (3, "rotation")):
        chosen = spec("balanced", scheme="W4A4", rounding=rounding, smoothing=choice, method_version=version)
        found[version, choice] = fit_group("g", layers, observe(x, vision, layers, chosen), chosen)
    error = {key: evaluate_group(each, layers, x[:200], vision[:200]).error.routed for key, each in found.items()}
    assert error[4, "search"] == error[3, "rotation"] < 0.7 * error[3, "search"]
    assert found[4, "search"].smoothing == "rotation(0.5)"


def test_the_default_rotates_from_version_4_on() -> None:
    for method in ("balanced", "best"):
        assert QuantizationSpec.preset(method).smoothing == "rotation"
        assert QuantizationSpec.preset(method, method_version=3).smoothing == "search"


def test_refinement_reads_what_the_rotated_base_reads() -> None:
    problem = problem_of(smoothing="rotation", scheme="W4A4")
    found = smoothing.get("rotation").smooth(problem)
    turned = problem.scaled(found.scale).rotated_by(found.rotation)
    base = turned.of_the_base()
    assert found.rotation is not None
    values = round_tokens(rotate(turned.samples, found.rotation.sizes), 4, found.rotation.clip)
    unrotated = rotate(base.weight, found.rotation.sizes)
    torch.testing.assert_close(
        turned.rounded(turned.samples) @ unrotated.T, values @ base.weight.T, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("rotation", [[3, 48], [0, 64], [1, 128]])
def test_a_rotation_that_the_width_does_not_allow_is_refused(rotation: list[int]) -> None:
    entry: dict[str, Any] = {**group_config(fitted_group(), PLAN, dtype=torch.float32), "rotation": rotation}
    quantizer = QuantExpertsQuantizer(QuantExpertsConfig(format=3, groups=[entry]))
    quantizer.validate_environment()
    model = Tiny()
    model.config = type("Config", (), {"architectures": ["Tiny"]})()
    with pytest.raises(ValueError, match=r"mlp\.gate_up: no rotation of \d+ x \d+ channels for 64"):
        quantizer._process_model_before_weight_loading(model)
