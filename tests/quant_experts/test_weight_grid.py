"""The grid that weights are rounded on: what the search finds, and that what it stores is what runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant_experts.checkpoint.pack import pack
from quant_experts.fit import reconstruction, rounding
from quant_experts.fit.fit_group import fit_group
from quant_experts.fit.weight_grid import SHRINKS, grid_of, searched_scales
from quant_experts.forward.modeling_quant_experts import dequantize, unpack
from quant_experts.spec.methods import GROUP_SIZES, PRESETS
from quant_experts.spec.specification import QuantizationSpec
from tests.quant_experts.problems import problem_of
from tests.quant_experts.tokens import mixture, observe, weights

EVERY_BITS = range(2, 9)


def _weighted_error(w: Tensor, scales: Tensor, low: int, high: int, importance: Tensor, size: int) -> Tensor:
    """(out, groups) float64, by the definition."""
    wide = scales.double().repeat_interleave(size, 1)
    rest = w.double() - (w.double() / wide).round().clamp(low, high) * wide
    return (rest.square() * importance.double()).reshape(len(w), -1, size).sum(-1)


@pytest.mark.parametrize("bits", EVERY_BITS)
def test_no_scale_that_was_tried_leaves_a_smaller_weighted_error(bits: int) -> None:
    source = torch.Generator().manual_seed(bits)
    w, importance = torch.randn(24, 96, generator=source), torch.rand(96, generator=source) ** 4
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    chosen = _weighted_error(w, searched_scales(w, bits, 32, importance), low, high, importance, 32)
    grouped = w.reshape(24, 3, 32)
    extreme = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)).squeeze(-1)
    for shrink in SHRINKS:
        tried = _weighted_error(w, extreme / low * shrink, low, high, importance, 32)
        assert bool((chosen <= tried * (1 + 1e-4) + 1e-9).all())


def test_the_weight_of_largest_magnitude_may_take_the_code_without_a_counterpart() -> None:
    w = torch.tensor([[-8.0, 7.0, 3.0, *[0.0] * 29], [8.0, -7.0, -3.0, *[0.0] * 29]])
    scales = searched_scales(w, 4, 32, torch.ones(32))
    assert scales.flatten().tolist() == [1.0, -1.0]
    assert torch.equal(dequantize((w / scales).round().to(torch.int8), scales, torch.float32), w)


@pytest.mark.parametrize("choice", ["rtn", "gptq", "obq"])
@pytest.mark.parametrize("bits", EVERY_BITS)
def test_every_rounding_loses_less_on_the_searched_grid(choice: str, bits: int) -> None:
    errors = {}
    for grid in ("max", "searched"):
        problem = problem_of(group_size=32, scheme=f"W{bits}A16", weight_grid=grid)
        exempt = torch.zeros(problem.width, dtype=torch.bool)
        exempt[[0, 40]] = True
        rounded = rounding.get(choice).round_weights(problem, exempt)
        assert int(rounded.codes.min()) >= -(2 ** (bits - 1))
        assert int(rounded.codes.max()) < 2 ** (bits - 1)
        assert int(rounded.codes[:, exempt].abs().max()) == 0
        rest = problem.weight.masked_fill(exempt, 0) - dequantize(rounded.codes, rounded.scales, torch.float32)
        errors[grid] = float(((rest @ problem.second_moment) * rest).sum())
    assert errors["searched"] < 0.95 * errors["max"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", EVERY_BITS)
def test_what_is_stored_on_the_searched_grid_is_what_runs(bits: int, dtype: torch.dtype) -> None:
    x, vision = mixture(300)
    chosen = QuantizationSpec.preset("gptq", scheme=f"W{bits}A16", group_size=32)
    fitted = fit_group("g", weights(), observe(x, vision, weights(), chosen), chosen, scale_dtype=dtype)
    codes, scales = torch.cat(fitted.codes), torch.cat(fitted.scales)
    assert int(codes.min()) == -(2 ** (bits - 1))
    assert set(scales.sign().unique().tolist()) == {-1.0, 1.0}
    served = dequantize(unpack(pack(codes, bits), bits, codes.shape[1]), scales.to(dtype), torch.float32)
    assert torch.equal(served, dequantize(codes, scales, torch.float32))


def test_groups_that_say_nothing_get_a_scale() -> None:
    zeros, tiny = torch.zeros(2, 32), torch.full((1, 32), 1e-9)
    assert searched_scales(zeros, 4, 32, torch.ones(32)).tolist() == [[1.0], [1.0]]
    assert searched_scales(tiny, 4, 32, torch.ones(32), torch.float16).tolist() == [[1.0]]
    unseen = searched_scales(torch.randn(3, 64), 4, 32, torch.zeros(64))
    assert bool((unseen.abs() > 0).all())
    assert bool(torch.isfinite(unseen).all())


def test_weights_whose_squared_errors_overflow_keep_the_unshrunk_scale() -> None:
    w = torch.randn(3, 64) * 1e25
    grouped = w.reshape(3, 2, 32)
    extreme = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)).squeeze(-1)
    assert torch.equal(searched_scales(w, 4, 32, torch.ones(64)), extreme / -8)


def test_a_scale_on_trial_is_searched_for_the_inputs_that_it_leaves() -> None:
    problem = problem_of(group_size=32)
    scale = torch.rand(problem.width, generator=torch.Generator().manual_seed(1)) * 8 + 0.1
    on_trial = grid_of(problem, problem.weight * scale, problem.second_moment.diagonal() / scale.square())
    scaled = problem.scaled(scale)
    assert torch.allclose(on_trial.scales, grid_of(scaled, scaled.weight).scales)


def test_a_spec_that_was_recorded_without_the_new_fields_means_what_it_meant() -> None:
    recorded = QuantizationSpec.preset("qe-gptq", method_version=2).model_dump(mode="json")
    for name in ("method_version", "weight_grid"):
        del recorded[name]
    old = QuantizationSpec.model_validate(recorded)
    assert (old.method_version, old.weight_grid, old.group_sizes) == (1, "max", (128,))
    assert QuantizationSpec.preset("qe-gptq", method_version=1) == old


@pytest.mark.parametrize("method", PRESETS)
def test_a_new_spec_searches_its_grid_unless_it_is_the_papers(method: str) -> None:
    assert QuantizationSpec.preset(method).weight_grid == ("max" if method == "qe-paper" else "searched")


@pytest.mark.parametrize(("width", "size"), [(1536, 128), (576, 64), (96, 32), (48, 48), (100, 100)])
def test_the_automatic_group_size_is_the_largest_that_divides_the_width(width: int, size: int) -> None:
    before = 128 if width % 128 == 0 else width
    assert QuantizationSpec.preset("rtn").group_size_for(width) == size
    assert QuantizationSpec.preset("rtn", method_version=1).group_size_for(width) == before
    assert size in GROUP_SIZES or width % min(GROUP_SIZES)


def test_no_more_columns_are_exempt_than_the_shared_expert_can_carry() -> None:
    exempt = {
        version: int(_exempt(method_version=version, important_channels=16, shared_rank=4).sum()) for version in (1, 2)
    }
    assert exempt == {1: 16, 2: 4}


def _exempt(**options: object) -> Tensor:
    return reconstruction.get("qe").exempt_columns(problem_of(**options))
