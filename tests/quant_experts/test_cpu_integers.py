"""Few tokens on a CPU: products with packed integers choose what the formula chooses and err no more than it does."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant_experts.forward import modeling_quant_experts as modeling
from quant_experts.forward.modeling_quant_experts import (
    FEW_TOKENS,
    CpuIntegers,
    QuantizedLinear,
    dequantize,
    kernel_rows,
)
from tests.quant_experts.drawn_layers import drawn, error, in_float64, outputs

needs_products = pytest.mark.skipif(not kernel_rows(), reason="this processor has no packed int4 product")


@pytest.fixture(autouse=True)
def fresh_choice() -> None:
    kernel_rows.cache_clear()


@needs_products
@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(2, 8),
    width_and_group=st.sampled_from([(64, 64), (96, 32), (256, 128), (256, 256), (320, 64), (512, 512)]),
    tokens=st.sampled_from([0, 1, 2, 3, 7, FEW_TOKENS, FEW_TOKENS + 1]),
    activation_bits=st.sampled_from([4, 6, 8, 16]),
    experts=st.sampled_from([0, 3]),
    int8=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_products_err_no_more_than_the_formula_and_choose_the_same(
    bits: int, width_and_group: tuple[int, int], tokens: int, activation_bits: int, experts: int, int8: bool, seed: int
) -> None:
    group, layers = drawn(
        bits, *width_and_group, activation_bits=activation_bits, experts=experts, int8=int8, seed=seed
    )
    x = torch.randn(tokens, group.width, generator=torch.Generator().manual_seed(seed)).bfloat16()
    reference, formula = group.prepare(x), outputs(layers, x)
    exact = [in_float64(group, layer, x) for layer in layers]
    for layer in layers:
        layer.accelerate()
    quick, fast = group.prepare(x), outputs(layers, x)
    assert all(layer.integers is not None and layer.weight_packed is None for layer in layers)
    assert torch.equal(quick.quantized, reference.quantized)
    if quick.routed is not None and reference.routed is not None:
        assert torch.equal(quick.routed.choice, reference.routed.choice)
    for y, by_formula, right in zip(fast, formula, exact, strict=True):
        assert y.shape == by_formula.shape
        assert y.dtype == torch.bfloat16
        # Of few numbers: either may be the luckier one in its last bits.
        assert error(y, right) <= error(by_formula, right) * 2 + 1e-4


@needs_products
@pytest.mark.parametrize("activation_bits", [6, 8, 16])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_over_many_tokens_products_are_at_least_as_close_as_the_formula(bits: int, activation_bits: int) -> None:
    group, layers = drawn(bits, 512, 128, activation_bits=activation_bits)
    tokens = torch.randn(320, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = in_float64(group, layers[1], tokens)
    formula = torch.cat([outputs(layers, x)[1] for x in tokens.split(FEW_TOKENS)])
    for layer in layers:
        layer.accelerate()
    fast = torch.cat([outputs(layers, x)[1] for x in tokens.split(FEW_TOKENS)])
    assert error(fast, exact) <= error(formula, exact)


@needs_products
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("out", [1, 31, 64, 100])
def test_repacked_integers_are_the_same_integers(bits: int, out: int) -> None:
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (out, 96), generator=random, dtype=torch.int8)
    scales = (torch.randn(out, 3, generator=random) * 0.01).bfloat16()
    integers = CpuIntegers(codes, scales, bits, kernel_rows())
    for dtype in (torch.bfloat16, torch.float32):
        assert torch.equal(integers.weight(dtype), dequantize(codes, scales, dtype))


@needs_products
def test_nothing_is_held_twice() -> None:
    def held(layer: QuantizedLinear) -> int:
        tensors = [*layer.parameters(), *layer.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    _, layers = drawn(4, 512, 128, activation_bits=8)
    before = held(layers[1])
    for layer in layers:
        layer.accelerate()
    outputs(layers, torch.randn(1, 512).bfloat16())
    # 130 rows are filled up to whole blocks; scales carry what is added to them.
    assert held(layers[1]) < before * 1.6


@needs_products
def test_other_dtypes_gradients_and_copies_stay_right() -> None:
    group, layers = drawn(4, 128, 64, activation_bits=16)
    x = torch.randn(3, 128)
    formula = outputs(layers, x.bfloat16())
    for layer in layers:
        layer.accelerate()
    outputs(layers, x.bfloat16())
    twins = copy.deepcopy(torch.nn.ModuleList([group, *layers]))
    assert all(torch.equal(a, b(x.bfloat16())) for a, b in zip(outputs(layers, x.bfloat16()), twins[1:], strict=True))
    with_gradient = x.bfloat16().requires_grad_()
    sum(y.float().sum() for y in outputs(layers, with_gradient)).backward()
    assert with_gradient.grad is not None
    torch.nn.ModuleList([group, *layers]).float()
    for y, expected in zip(outputs(layers, x), formula, strict=True):
        assert y.dtype == torch.float32
        assert error(y, expected.double()) < 0.02


@needs_products
def test_threads_that_come_first_together_agree() -> None:
    _, layers = drawn(4, 256, 64, activation_bits=8)
    x = torch.randn(4, 256).bfloat16()
    for layer in layers:
        layer.accelerate()
    expected = outputs(copy.deepcopy(layers), x)
    found: list[list[Tensor]] = []
    threads = [threading.Thread(target=lambda: found.append(outputs(layers, x.clone()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(a, b) for ys in found for a, b in zip(ys, expected, strict=True))


def test_the_formula_stays_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QE_KERNELS", "reference")
    _, layers = drawn(4, 128, 64, activation_bits=8)
    x = torch.randn(2, 128).bfloat16()
    expected = outputs(layers, x)
    for layer in layers:
        layer.accelerate()
    assert all(torch.equal(a, b) for a, b in zip(outputs(layers, x), expected, strict=True))
    assert all(layer.integers is None for layer in layers)


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QE_KERNELS", "fast")
    with pytest.raises(ValueError, match="QE_KERNELS"):
        kernel_rows()


def test_a_torch_without_the_product_uses_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling.torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert kernel_rows() == 0
