"""Integer rounding obeys its laws for any weight, width and group size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_experts.fit.quantizer import largest_integer, quantize, round_tokens
from quant_experts.forward.modeling_quant_experts import dequantize


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([1, 8, 32]),
    magnitude=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_dequantized_weight_is_within_half_a_step(
    bits: int, rows: int, groups: int, group_size: int, magnitude: float, seed: int
) -> None:
    w = torch.randn(rows, groups * group_size, generator=torch.Generator().manual_seed(seed)) * magnitude
    codes, scales = quantize(w, bits, group_size)
    step = scales.repeat_interleave(group_size, dim=1)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= largest_integer(bits)
    assert bool(((dequantize(codes, scales, torch.float32) - w).abs() <= step * 0.5001).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_are_the_ones_that_will_be_stored(dtype: torch.dtype) -> None:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize(w, 4, 32, dtype)
    assert torch.equal(scales, scales.to(dtype).float())
    stored = dequantize(codes, scales.to(dtype), torch.float32)
    best = (w.reshape(16, 2, 32) / scales.unsqueeze(-1)).round().clamp(-7, 7) * scales.unsqueeze(-1)
    assert torch.equal(stored, best.reshape(16, 64))


def test_a_group_of_zeros_stays_zero_and_finite() -> None:
    w = torch.zeros(2, 64)
    w[1, 32:] = torch.randn(32, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize(w, 4, 32, torch.float16)
    back = dequantize(codes, scales, torch.float32)
    assert bool(torch.isfinite(scales).all())
    assert torch.equal(back[0], torch.zeros(64))
    assert torch.equal(back[1, :32], torch.zeros(32))


def test_weights_below_the_smallest_stored_scale_become_zero_without_nan() -> None:
    codes, scales = quantize(torch.full((1, 32), 1e-9), 4, 32, torch.float16)
    assert bool(torch.isfinite(dequantize(codes, scales, torch.float32)).all())


def test_group_size_that_does_not_divide_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="group size 32 does not divide the input width 48"):
        quantize(torch.zeros(2, 48), 4, 32)


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from([4, 5, 6, 7, 8]), seed=st.integers(0, 1000))
def test_each_token_has_its_own_activation_scale(bits: int, seed: int) -> None:
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(seed))
    x[0] *= 1000
    step = x.abs().amax(-1, keepdim=True) / largest_integer(bits)
    assert bool(((round_tokens(x, bits) - x).abs() <= step * 0.5001).all())
    assert torch.equal(round_tokens(x[1], bits), round_tokens(x, bits)[1])


def test_sixteen_bits_leave_activations_alone_and_zero_tokens_stay_zero() -> None:
    x = torch.randn(3, 8)
    assert round_tokens(x, 16) is x
    assert torch.equal(round_tokens(torch.zeros(2, 8), 6), torch.zeros(2, 8))
