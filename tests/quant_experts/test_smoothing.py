"""Scales follow the published formulas, change nothing before rounding, and the search keeps the best of them."""

from __future__ import annotations

import pytest
import torch

from quant_experts.fit import smoothing
from quant_experts.fit.fit_group import evaluate_group, fit_group
from quant_experts.fit.problem import GroupProblem
from tests.quant_experts.problems import problem_of
from tests.quant_experts.tokens import mixture, observe, spec, weights


@pytest.mark.parametrize("choice", sorted({"outlier", "smoothquant", "search", "rotation"}))
def test_scaling_changes_no_output_before_rounding(choice: str) -> None:
    problem = problem_of()
    scaled = problem.scaled(smoothing.get(choice).smooth(problem).scale)
    torch.testing.assert_close(
        scaled.samples @ scaled.weight.T, problem.samples @ problem.weight.T, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        scaled.weight @ scaled.second_moment @ scaled.weight.T,
        problem.weight @ problem.second_moment @ problem.weight.T,
        rtol=1e-3,
        atol=1.0,
    )


def test_outlier_brings_the_token_independent_channels_down_to_the_smallest_of_them() -> None:
    problem = problem_of()
    scale = smoothing.get("outlier").smooth(problem).scale
    assert scale is not None
    chosen = problem.partition.independent
    expected = torch.ones_like(scale)
    expected[chosen] = (problem.mean_abs[chosen] / problem.mean_abs[chosen].min()).clamp_min(1)
    torch.testing.assert_close(scale, expected, rtol=2**-8, atol=0.0)
    assert float(scale.max()) > 1.5


def test_smoothquant_follows_its_formula_up_to_a_common_factor() -> None:
    problem = problem_of(smoothquant_alpha=0.7)
    found = smoothing.get("smoothquant").smooth(problem)
    formula = problem.max_abs**0.7 / problem.weight.abs().amax(0) ** 0.3
    ratio = found.scale / formula
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=2**-7, atol=0.0)
    assert found.label == "smoothquant(0.7)"


@pytest.mark.parametrize("choice", ["none", "outlier", "smoothquant", "search", "rotation"])
def test_dead_and_constant_channels_leave_finite_scales_positive_but_for_a_rotations_signs(choice: str) -> None:
    x, vision = mixture(200)
    x[:, 10] = 0
    x[:, 11] = 3
    layers = weights()
    layers["q"][:, 12] = 0
    layers["k"][:, 12] = 0
    found = smoothing.get(choice).smooth(problem_of(x, vision, layers))
    scale = found.scale if found.rotation is None or found.scale is None else found.scale.abs()
    assert scale is None or bool((torch.isfinite(scale) & (scale > 0)).all())


def test_scales_survive_storage_in_bfloat16_and_float16() -> None:
    problem = problem_of()
    scale = smoothing.get("smoothquant").smooth(problem).scale
    assert scale is not None
    assert torch.equal(scale, scale.to(torch.bfloat16).float())
    assert torch.equal(scale, scale.to(torch.float16).float())


def test_search_finds_the_channel_that_importance_does_not_see() -> None:
    """A loud channel with weights as much smaller: |x| w is ordinary, but it alone sets the activation scale."""
    x, vision = mixture(600)
    layers = weights()
    x[:, 40] = torch.randn(600, generator=torch.Generator().manual_seed(3)) * 300
    layers = {name: w.clone() for name, w in layers.items()}
    for w in layers.values():
        w[:, 40] /= 1000
    test, test_vision = x[:150], vision[:150]
    error = {}
    for choice in ("none", "outlier", "search"):
        chosen = spec("qe", smoothing=choice)
        fitted = fit_group("g", layers, observe(x, vision, layers, chosen), chosen)
        error[choice] = evaluate_group(fitted, layers, test, test_vision).error.routed
    assert error["search"] < 0.3 * min(error["none"], error["outlier"])


def test_search_never_keeps_a_worse_scale_than_none() -> None:
    for seed in range(3):
        x, vision = mixture(300, seed=seed)
        problem = problem_of(x, vision, method_version=3)
        found = smoothing.get("search").smooth(problem)
        assert _rounding_error(problem, found.scale) <= _rounding_error(problem, None) * 1.0001


def _rounding_error(problem: GroupProblem, scale: torch.Tensor | None) -> float:
    from quant_experts.fit.quantizer import quantize, round_tokens
    from quant_experts.forward.modeling_quant_experts import dequantize

    scaled = problem.scaled(scale)
    rounded = dequantize(*quantize(scaled.weight, 4, problem.group_size, problem.scale_dtype), torch.float32)
    output = round_tokens(scaled.samples, 6) @ rounded.T
    return float((output - problem.samples @ problem.weight.T).square().sum())
