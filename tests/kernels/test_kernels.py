"""The package's kernels choose what the formula chooses, and err no more, on every path of this processor."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quant_experts.forward import modeling_quant_experts as modeling
from quant_experts.forward.modeling_quant_experts import InputGroup, QuantizedLinear, quantize_tokens, rotate
from tests.kernels import package
from tests.quant_experts.drawn_layers import drawn, error, in_float64, outputs

PATHS = ("avx512bf16", "avx512vnni", "avxvnni", "avx2", "neondot", "baseline")
WIDTHS_AND_GROUPS = [(64, 64), (96, 32), (160, 160), (256, 128), (320, 64), (512, 512)]


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    found = package()
    for name in ("", ".layers", ".library"):
        patch.setitem(sys.modules, f"quant_experts_kernels{name}", found if not name else getattr(found, name[1:]))
    patch.setattr(modeling, "kernels", lambda: found)
    patch.setattr(found.layers, "path", lambda: "any")  # the baseline is tested too
    yield found
    patch.undo()
    found.library.library().qe_choose(b"")


def paths(kernels: Any) -> list[str]:
    return [path for path in PATHS if kernels.library.library().qe_choose(path.encode())]


def codes_and_choice(group: InputGroup, x: Tensor, integers: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels have prepared: whole numbers (tokens, d), the tokens' scales, their experts, all by token."""
    prepared, (tokens, d), wide = group.pack(x, integers), x.shape, group.activation_bits == 16
    groups = d // (next(g for g in (128, 64, 32) if integers.group_size % g == 0) if wide else integers.group_size)
    rank = sum(0 if each is None else each.shape[-2] for each in (group.shared_down, group.routed_down))
    sizes = (
        tokens * d * (1 + wide),
        4 * tokens * groups,
        4 * tokens * (groups if wide else 1),
        4 * tokens * rank,
        *[4 * tokens] * 2,
    )
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // 64) * 64)
    codes, _, scales, _, choice, order = (prepared[at : at + size] for at, size in zip(starts, sizes, strict=False))
    back = order.view(torch.int32).long().argsort()
    planes = codes.view(torch.int8).view(1 + wide, tokens, d)[:, back].float()
    whole = planes[0] * 256 + planes[1] if wide else planes[0]
    by_group = scales.view(torch.float32).view(groups if wide else 1, tokens)
    return whole, by_group[:, back].t(), choice.view(torch.int32)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    width_and_group=st.sampled_from(WIDTHS_AND_GROUPS),
    tokens=st.sampled_from([0, 1, 2, 3, 7, 16, 45]),
    activation_bits=st.sampled_from([4, 6, 8, 16]),
    experts=st.sampled_from([0, 3]),
    int8=st.booleans(),
    turned=st.booleans(),
    clip=st.sampled_from([None, 2.5]),
    seed=st.integers(0, 1000),
)
def test_codes_scales_and_routing_are_the_formulas_and_sums_err_no_more(
    kernels: Any,
    bits: int,
    width_and_group: tuple[int, int],
    tokens: int,
    activation_bits: int,
    experts: int,
    int8: bool,
    turned: bool,
    clip: float | None,
    seed: int,
) -> None:
    width, group_size = width_and_group
    options = {"experts": experts, "int8": int8, "rotation": (1, 32) if turned else None, "clip": clip, "seed": seed}
    group, layers = drawn(bits, width, group_size, activation_bits=activation_bits, **options)
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)).bfloat16()
    reference, formula = group.prepare(x), outputs(layers, x)
    exact = [in_float64(group, layer, x) for layer in layers]
    h = x.float() if group.smooth is None else x.float() / group.smooth
    h = rotate(h, group.rotation) if group.rotation else h
    for layer in layers:
        layer.accelerate()
        assert layer.fused
    for path in paths(kernels):
        codes, scales, choice = codes_and_choice(group, x, layers[0].repack())
        if activation_bits == 16:
            whole = (codes.unflatten(1, (scales.shape[1], -1)) * scales.unsqueeze(-1)).flatten(1)
            largest = float(h.abs().max()) if tokens else 0.0
            assert torch.allclose(whole, h.bfloat16().float(), rtol=2**-15, atol=largest * 2**-15), path
        else:
            expected = quantize_tokens(h, activation_bits, clip)
            assert torch.equal(codes, expected[0]), path
            assert torch.equal(scales, expected[1]), path
        if reference.routed is not None:
            assert torch.equal(choice.long(), reference.routed.choice), path
        for y, by_formula, right in zip(outputs(layers, x), formula, exact, strict=True):
            assert y.shape == by_formula.shape
            assert y.dtype == torch.bfloat16
            # Of few numbers: either may be the luckier one in its last bits.
            assert error(y, right) <= error(by_formula, right) * 1.5 + 1e-4, path


@pytest.mark.parametrize("activation_bits", [6, 8, 16])
@pytest.mark.parametrize("bits", [4, 8])
def test_over_many_tokens_sums_are_closer_than_the_formula(kernels: Any, bits: int, activation_bits: int) -> None:
    group, layers = drawn(bits, 512, 128, activation_bits=activation_bits)
    x = torch.randn(320, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[:, 7] *= 300  # an outlier channel, as real activations have
    exact, formula = in_float64(group, layers[1], x), outputs(layers, x)[1]
    for layer in layers:
        layer.accelerate()
    for path in paths(kernels):
        assert error(outputs(layers, x)[1], exact) <= error(formula, exact), path


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("out", [1, 16, 100])
def test_packed_layers_give_back_what_they_were_made_of(kernels: Any, bits: int, out: int) -> None:
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (out, 96), generator=random, dtype=torch.int8)
    scales = (torch.randn(out, 3, generator=random) * 0.01).bfloat16()
    shared = (torch.randn(out, 5, generator=random).bfloat16(), None)
    routed = (torch.ones(2, out, 4).char(), torch.randn(2, out).bfloat16())
    packed = kernels.PackedLinear(codes, scales, bits, 8, shared, routed)
    assert torch.equal(packed.codes(), codes)
    for dtype in (torch.bfloat16, torch.float32):
        assert torch.equal(packed.weight(dtype), modeling.dequantize(codes, scales, dtype))
    for found, given_ in zip(packed.adapters().values(), (*shared, *routed), strict=True):
        assert found is given_ is None or torch.equal(found, given_)


def test_a_token_that_is_not_a_number_spoils_no_other(kernels: Any) -> None:
    for activation_bits in (8, 16):
        group, layers = drawn(4, 128, 64, activation_bits=activation_bits, experts=0)
        group.shared_down = None  # it would carry it to the output by itself
        for layer in layers:
            layer.shared_up = None
            layer.accelerate()
        x = torch.randn(14, 128).bfloat16()
        right = outputs(layers, x)
        x[3, 5], x[9, 100] = float("nan"), float("inf")
        for path in paths(kernels):
            for y, expected in zip(outputs(layers, x.clone()), right, strict=True):
                sound = [row for row in range(14) if row not in (3, 9)]
                assert not y[[3, 9]].isfinite().any(), path
                assert y[sound].isfinite().all(), path
                assert error(y[sound], expected[sound].double()) < 0.01, path


def test_other_dtypes_gradients_and_copies_stay_right_and_nothing_is_held_twice(kernels: Any) -> None:
    def held(module: nn.Module) -> int:
        return sum(each.numel() * each.element_size() for each in (*module.parameters(), *module.buffers()))

    group, layers = drawn(4, 512, 64, activation_bits=16)
    x = torch.randn(3, 512)
    before, formula = sum(map(held, layers)), outputs(layers, x.bfloat16())
    for layer in layers:
        layer.accelerate()
    outputs(layers, x.bfloat16())
    assert sum(map(held, layers)) < before * 1.1  # 130 channels are filled up to whole panels
    twins = copy.deepcopy(nn.ModuleList([group, *layers]))
    assert all(torch.equal(a, b(x.bfloat16())) for a, b in zip(outputs(layers, x.bfloat16()), twins[1:], strict=True))
    with_gradient = x.bfloat16().requires_grad_()
    by_autograd = outputs(layers, with_gradient)
    sum(y.float().sum() for y in by_autograd).backward()
    assert with_gradient.grad is not None
    assert all(torch.equal(a, b) for a, b in zip(by_autograd, formula, strict=True))
    nn.ModuleList([group, *layers]).float()
    for y, expected in zip(outputs(layers, x), formula, strict=True):
        assert y.dtype == torch.float32
        assert error(y, expected.double()) < 0.02


def test_threads_of_torch_share_the_work_and_change_nothing(kernels: Any) -> None:
    assert kernels.library._gomp_parallel()
    _, layers = drawn(4, 1024, 128, activation_bits=8)
    for layer in layers:
        layer.accelerate()
    x, threads = torch.randn(80, 1024).bfloat16(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = outputs(layers, x)
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(outputs(layers, x.clone()), alone, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_a_compiled_graph_is_not_broken(kernels: Any) -> None:
    group, layers = drawn(4, 128, 64, activation_bits=8)
    for layer in layers:
        layer.accelerate()
    model = nn.ModuleList([group, *layers])

    def run(x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in model[1:]], dim=-1)

    with torch.inference_mode():
        expected = [run(torch.ones(tokens, 128).bfloat16()) for tokens in (1, 5)]
        compiled = torch.compile(run, backend="eager", fullgraph=True, dynamic=True)
        for tokens, right in zip((1, 5), expected, strict=True):
            assert torch.equal(compiled(torch.ones(tokens, 128).bfloat16()), right)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.quant_experts_kernels.linear, _arguments(layers[1], group), test_utils=tests)


def _arguments(layer: QuantizedLinear, group: InputGroup) -> tuple[Any, ...]:
    x, it = torch.ones(3, 128).bfloat16(), layer.integers
    ups = (it.shared_up, it.shared_up_scale, it.routed_up, it.routed_up_scale)
    return group.pack(x, it), x, it.blocks, it.scales, layer.bias, *ups, 64, 8, it.parts, it.out_features


def test_what_the_kernels_lack_keeps_the_way_of_before(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(**options: Any) -> bool:
        group, layers = drawn(4, options.pop("width", 128), options.pop("group_size", 64), activation_bits=8)
        if options:
            group.router = nn.Parameter(group.router.half(), requires_grad=False)
        layers[0].accelerate()
        return layers[0].fused

    assert fused()
    assert not fused(width=144, group_size=48)
    assert not fused(adapters=torch.float16)
    monkeypatch.setattr(kernels.layers, "path", lambda: "baseline")
    assert not fused()


def test_the_environment_and_the_contract_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "quant_experts_kernels", package())
    choose = modeling.find_kernels
    assert choose() is package()
    for chosen in ("torch", "reference"):
        monkeypatch.setenv("QE_KERNELS", chosen)
        assert choose() is None
    monkeypatch.delenv("QE_KERNELS")
    monkeypatch.setattr(package(), "API", modeling.KERNELS_API + 1)
    assert choose() is None
