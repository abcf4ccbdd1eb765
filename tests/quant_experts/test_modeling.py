"""The layer that runs: packing, the forward against the formula written out, and sharing within a group."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from torch import Tensor, nn

from quant_experts.checkpoint.layout import group_config, group_tensors, install_group
from quant_experts.checkpoint.pack import pack
from quant_experts.errors import InvalidCheckpoint, NumericalFailure
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.quantizer import quantize, round_tokens
from quant_experts.fit.rotation import Rotation
from quant_experts.forward.modeling_quant_experts import (
    InputGroup,
    QuantizedLinear,
    dequantize,
    dequantized_weights,
    unpack,
)
from quant_experts.model.groups import GroupPlan

WIDTH, OUTS, EXPERTS, SHARED, ROUTED = 64, (48, 16), 4, 6, 5
PLAN = GroupPlan("mlp.gate_up", "mlp", "gate_up", ("gate_proj", "up_proj"), 0, WIDTH, OUTS)


class Tiny(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32, bias: bool = True) -> None:
        super().__init__()
        self.mlp = nn.Module()
        for name, out in zip(PLAN.layers, OUTS, strict=True):
            setattr(self.mlp, name, nn.Linear(WIDTH, out, bias=bias, dtype=dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mlp.gate_proj(x), self.mlp.up_proj(x)


def fitted_group(
    weight_bits: int = 4,
    activation_bits: int = 8,
    *,
    experts: bool = True,
    seed: int = 0,
    rotation: Rotation | None = None,
) -> FittedGroup:
    """A group with drawn, not fitted, values: the forward must follow the formula whatever they are."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=random) * 0.3).to(torch.bfloat16).float()

    codes, scales = zip(*(quantize(draw(out, WIDTH), weight_bits, 32) for out in OUTS), strict=True)
    return FittedGroup(
        name=PLAN.name,
        layers=PLAN.layers,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        group_size=32,
        smoothing="outlier" if experts else "none",
        codes=codes,
        scales=scales,
        smooth=torch.rand(WIDTH, generator=random) + 0.5 if experts else None,
        shared_down=draw(SHARED, WIDTH) if experts else None,
        shared_up=tuple(draw(out, SHARED) for out in OUTS) if experts else (),
        routed_down=draw(EXPERTS, ROUTED, WIDTH) if experts else None,
        routed_up=tuple(draw(EXPERTS, out, ROUTED) for out in OUTS) if experts else (),
        router=draw(EXPERTS, WIDTH) if experts else None,
        warnings=(),
        rotation=rotation,
    )


def installed(fitted: FittedGroup, dtype: torch.dtype = torch.float32, bias: bool = True) -> Tiny:
    torch.manual_seed(1)
    model = Tiny(dtype, bias)
    biases = {name: getattr(model.mlp, name).bias for name in PLAN.layers} if bias else {}
    install_group(
        model, group_config(fitted, PLAN, dtype=dtype), group_tensors(fitted, PLAN, dtype=dtype, biases=biases)
    )
    return model


def _by_recursion(n: int) -> Tensor:
    """Sylvester's Hadamard matrix, orthogonal."""
    half = torch.ones(1, 1) if n == 1 else _by_recursion(n // 2)
    return half if n == 1 else torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), half) / 2**0.5


def by_the_formula(fitted: FittedGroup, x: Tensor, j: int, bias: Tensor) -> Tensor:
    """method.md section 4, one token at a time."""
    rows = []
    for token in x.reshape(-1, WIDTH):
        h = token if fitted.smooth is None else token / fitted.smooth
        turned, clip = h, None
        if fitted.rotation is not None:
            matrix = torch.kron(torch.eye(WIDTH // fitted.rotation.sizes[1]), _by_recursion(fitted.rotation.sizes[1]))
            turned, clip = matrix @ h, fitted.rotation.clip
        base = dequantize(fitted.codes[j], fitted.scales[j], torch.float32)
        y = base @ round_tokens(turned, fitted.activation_bits, clip) + bias
        if fitted.shared_down is not None:
            y = y + fitted.shared_up[j] @ (fitted.shared_down @ h)
        if fitted.routed_down is not None and fitted.router is not None:
            i = int((fitted.router @ h.abs()).argmin())
            y = y + fitted.routed_up[j][i] @ (fitted.routed_down[i] @ h)
        rows.append(y)
    return torch.stack(rows).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [32, 64, 33, 50, 7, 1])
def test_packing_equals_that_of_compressed_tensors(bits: int, columns: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (5, columns), generator=torch.Generator().manual_seed(bits), dtype=torch.int8)
    packed = pack(codes, bits)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape), codes)


def test_a_code_that_does_not_fit_its_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 4 bits"):
        pack(torch.tensor([[8]], dtype=torch.int8), 4)


@pytest.mark.parametrize(
    ("weight_bits", "rotation"),
    [*((bits, None) for bits in (2, 3, 4, 8)), (4, Rotation((1, 32), 2.0)), (4, Rotation((1, 64), None))],
)
@pytest.mark.parametrize("activation_bits", [6, 8, 16])
@pytest.mark.parametrize("tokens", [(1,), (2, 40)], ids=["decode", "prefill"])
def test_the_forward_is_the_formula(
    weight_bits: int, activation_bits: int, tokens: tuple[int, ...], rotation: Rotation | None
) -> None:
    fitted = fitted_group(weight_bits, activation_bits, rotation=rotation)
    model = installed(fitted)
    x = torch.randn(*tokens, WIDTH, generator=torch.Generator().manual_seed(2))
    for j, y in enumerate(model(x)):
        expected = by_the_formula(fitted, x, j, getattr(model.mlp, PLAN.layers[j]).bias)
        if rotation is None:
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        else:  # sums in another order may tip the rounding of a channel
            assert float((y - expected).norm() / expected.norm()) < 0.005


def test_the_forward_without_experts_is_the_base_alone() -> None:
    fitted = fitted_group(experts=False)
    model = installed(fitted)
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(
        model(x)[0], by_the_formula(fitted, x, 0, model.mlp.gate_proj.bias), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_close_to_float32_and_keeps_its_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)
    exact = installed(fitted_group(), bias=False)(x.float())[0]
    y = installed(fitted_group(), dtype, bias=False)(x)[0]
    assert y.dtype == dtype
    assert ((y.float() - exact).norm() / exact.norm()) < 0.01


def test_a_token_gets_the_same_output_alone_and_in_a_batch() -> None:
    model = installed(fitted_group())
    x = torch.randn(3, 20, WIDTH)
    together = model(x)[0]
    torch.testing.assert_close(together[1, 7:8], model(x[1, 7:8])[0])


def test_an_empty_batch_gives_an_empty_output() -> None:
    assert installed(fitted_group())(torch.empty(0, WIDTH))[0].shape == (0, OUTS[0])


def test_siblings_share_one_computation_and_nothing_is_kept_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    real = InputGroup.prepare
    monkeypatch.setattr(InputGroup, "prepare", lambda self, x: computed.append(x) or real(self, x))
    model = installed(fitted_group())
    model(torch.randn(4, WIDTH))
    assert len(computed) == 1
    assert model.mlp.gate_up_input_group._pass is None


def test_a_thread_never_gets_what_another_one_computed() -> None:
    model = installed(fitted_group())
    group, first, second = model.mlp.gate_up_input_group, *PLAN.layers
    x, other = torch.randn(2, 3, WIDTH)

    class Overtaken(str):
        """A layer's name at which, when the group looks it up, another thread gets ahead with its own activation."""

        def __hash__(self) -> int:
            thread = threading.Thread(target=group, args=(other, first))
            thread.start()
            thread.join()
            return super().__hash__()

    group(x, first)
    assert torch.equal(group(x, Overtaken(second)).quantized, group.prepare(x).quantized)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_activation_written_in_place_is_computed_again(mode: type) -> None:
    model = installed(fitted_group())
    with mode():
        x, other = torch.randn(9, WIDTH), torch.randn(9, WIDTH)
        expected = [model(x.clone())[0], model(other.clone())[0]]
        first = model.mlp.gate_proj(x)  # up_proj never reads: what was computed for x is still there
        x.copy_(other)
        second = model.mlp.gate_proj(x)
    torch.testing.assert_close(first, expected[0])
    torch.testing.assert_close(second, expected[1])


def test_gradients_reach_the_input_through_the_low_rank_paths() -> None:
    model = installed(fitted_group())
    x = torch.randn(12, WIDTH, requires_grad=True)
    sum(y.sum() for y in model(x)).backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_kept_weights_change_no_result_and_are_dropped() -> None:
    model = installed(fitted_group())
    x = torch.randn(5, WIDTH)
    before = model(x)[0]
    with dequantized_weights(model):
        inside = [model(x)[0], model(x)[0]]
        assert model.mlp.gate_proj._weight is not None
    assert all(torch.equal(before, y) for y in inside)
    assert model.mlp.gate_proj._weight is None


def test_a_copied_model_uses_its_own_group() -> None:
    model = installed(fitted_group())
    twin = copy.deepcopy(model)
    assert twin.mlp.gate_proj._group[0] is twin.mlp.gate_up_input_group


def test_the_groups_tensors_are_stored_once_under_the_parent() -> None:
    fitted = fitted_group()
    names = set(installed(fitted).state_dict())
    assert names == set(group_tensors(fitted, PLAN, dtype=torch.float32)) | {"mlp.gate_proj.bias", "mlp.up_proj.bias"}
    assert isinstance(installed(fitted).mlp.gate_proj, QuantizedLinear)


def test_missing_and_misshapen_tensors_are_named() -> None:
    fitted = fitted_group()
    entry, tensors = group_config(fitted, PLAN, dtype=torch.float32), group_tensors(fitted, PLAN, dtype=torch.float32)
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith("router")}
    with pytest.raises(InvalidCheckpoint, match=r"mlp\.gate_up_input_group\.router"):
        install_group(Tiny(), entry, without)
    with pytest.raises(InvalidCheckpoint, match=r"mlp\.up_proj\.weight_scale: shape"):
        install_group(Tiny(), entry, {**tensors, "mlp.up_proj.weight_scale": torch.ones(1, 1)})


def test_an_adapter_that_overflows_its_stored_dtype_is_named() -> None:
    fitted = fitted_group()
    assert fitted.shared_down is not None
    fitted.shared_down[0, 0] = 1e9
    with pytest.raises(NumericalFailure, match=r"gate_up_input_group\.shared_down"):
        group_tensors(fitted, PLAN, dtype=torch.float16)
