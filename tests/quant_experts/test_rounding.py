"""Rounding keeps the grid, spares the exempt columns, and GPTQ leaves less output error than rounding to nearest."""

from __future__ import annotations

import pytest
import torch

from quant_experts.fit import rounding
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.rounding.gptq import BLOCK
from quant_experts.forward.modeling_quant_experts import dequantize
from tests.quant_experts.problems import problem_of
from tests.quant_experts.tokens import mixture, weights


def _output_error(problem: GroupProblem, rounded: rounding.Rounded, exempt: torch.Tensor) -> float:
    wanted = problem.weight.masked_fill(exempt, 0)
    rest = wanted - dequantize(rounded.codes, rounded.scales, torch.float32)
    return float(((rest @ problem.second_moment) * rest).sum())


@pytest.mark.parametrize("choice", ["rtn", "gptq", "descent"])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_stay_on_the_grid_and_exempt_columns_are_zero(choice: str, group_size: int, bits: int) -> None:
    problem = problem_of(group_size=group_size, scheme=f"W{bits}A16")
    exempt = torch.zeros(problem.width, dtype=torch.bool)
    exempt[[0, 1, 33]] = True
    rounded = rounding.get(choice).round_weights(problem, exempt)
    assert rounded.codes.dtype == torch.int8
    assert int(rounded.codes.min()) == -(2 ** (bits - 1))
    assert int(rounded.codes.max()) < 2 ** (bits - 1)
    assert int(rounded.codes[:, exempt].abs().max()) == 0
    assert rounded.scales.shape == (problem.weight.shape[0], problem.width // group_size)


@pytest.mark.parametrize("group_size", [32, 64])
def test_gptq_leaves_less_output_error_than_round_to_nearest(group_size: int) -> None:
    mixing = torch.randn(64, 64, generator=torch.Generator().manual_seed(9)) / 8
    x, vision = mixture(600)
    problem = problem_of(x @ mixing, vision, group_size=group_size)
    exempt = torch.zeros(64, dtype=torch.bool)
    errors = {
        choice: _output_error(problem, rounding.get(choice).round_weights(problem, exempt), exempt)
        for choice in ("rtn", "gptq")
    }
    assert errors["gptq"] < 0.8 * errors["rtn"]


def _correlated(width: int, **options: object) -> GroupProblem:
    x, vision = mixture(900, width=width)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(4)) / width**0.5
    return problem_of(x @ mixing, vision, weights(width=width), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 4])
def test_descent_leaves_less_output_error_than_gptq_and_each_step_less_than_the_one_before(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = _correlated(2 * BLOCK, group_size=64, scheme=f"W{bits}A16")
    exempt = torch.zeros(problem.width, dtype=torch.bool)
    exempt[[3, 130]] = True
    errors = [_output_error(problem, rounding.get("gptq").round_weights(problem, exempt), exempt)]
    for sweeps in (1, 2, 3):
        monkeypatch.setattr("quant_experts.fit.rounding.descent.SWEEPS", sweeps)
        errors.append(_output_error(problem, rounding.get("descent").round_weights(problem, exempt), exempt))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


def test_descent_survives_inputs_and_weights_of_zeros() -> None:
    layers = weights()
    for weight in layers.values():
        weight[0] = 0
        weight[1:3, :32] = 0
    problem = problem_of(torch.zeros(10, 64), torch.zeros(10, dtype=torch.bool), layers, group_size=32)
    exempt = torch.zeros(64, dtype=torch.bool)
    rounded = rounding.get("descent").round_weights(problem, exempt)
    assert torch.isfinite(rounded.scales).all()
    assert bool((rounded.scales != 0).all())
    assert int(rounded.codes[0].abs().max()) == 0


def test_gptq_with_uncorrelated_inputs_is_round_to_nearest() -> None:
    """Nothing can be made up for in other columns when no other column is active at the same time."""
    x = torch.eye(64).repeat(3, 1) * torch.rand(192, 1, generator=torch.Generator().manual_seed(0)).add(0.5)
    problem = problem_of(x, torch.zeros(192, dtype=torch.bool))
    exempt = torch.zeros(64, dtype=torch.bool)
    nearest, gptq = (rounding.get(choice).round_weights(problem, exempt) for choice in ("rtn", "gptq"))
    assert torch.equal(nearest.codes, gptq.codes)


def test_blocked_gptq_equals_one_column_at_a_time() -> None:
    width = 2 * BLOCK + 16
    x, vision = mixture(900, width=width)
    x = x @ (torch.randn(width, width, generator=torch.Generator().manual_seed(4)) / 16)
    layers = weights(width=width)
    problem = problem_of(x, vision, layers)
    exempt = torch.zeros(width, dtype=torch.bool)
    rounded = rounding.get("gptq").round_weights(problem, exempt)

    # The textbook form: after each column all remaining ones move by error · H⁻¹ row / H⁻¹ diagonal, H⁻¹ shrinking
    # each time.
    moment = problem.second_moment.double() / problem.tokens
    moment.diagonal().add_(problem.spec.damping * moment.diagonal().mean())
    order = problem.second_moment.diagonal().argsort(descending=True, stable=True)
    inverse = torch.linalg.inv(moment)
    work = problem.weight.double().clone()
    codes = torch.zeros_like(work)
    remaining = order.tolist()
    for column in order.tolist():
        step = rounded.scales[:, 0].double()
        codes[:, column] = (work[:, column] / step).round().clamp(-8, 7)
        error = (work[:, column] - codes[:, column] * step) / inverse[column, column]
        remaining.remove(column)
        work[:, remaining] -= error.unsqueeze(1) * inverse[column, remaining]
        inverse = inverse - inverse[:, [column]] @ inverse[[column], :] / inverse[column, column]
    assert float((codes == rounded.codes).double().mean()) > 0.999


def test_gptq_survives_dead_and_duplicated_channels() -> None:
    x, vision = mixture(100)
    x[:, 20] = 0
    x[:, 21] = x[:, 22]
    rounded = rounding.get("gptq").round_weights(problem_of(x, vision), torch.zeros(64, dtype=torch.bool))
    assert bool(torch.isfinite(rounded.scales).all())
    assert int(rounded.codes[:, 20].abs().max()) > 0
