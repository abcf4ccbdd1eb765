"""Adapters as they are stored: what int8 with a scale per row keeps, costs and runs like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quant_experts.checkpoint.layout import group_config, group_tensors, install_group, stored_bits
from quant_experts.fit.fit_group import fit_group
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.group_evaluation import evaluate_group
from quant_experts.forward.modeling_quant_experts import dequantize, rotate
from quant_experts.model.groups import GroupPlan
from tests.quant_experts.tokens import WIDTH, mixture, observe, spec, weights

PLAN = GroupPlan("attn.qkv", "attn", "qkv", ("q", "k"), 0, WIDTH, (48, 16))


def fitted(adapter_dtype: str, *, scheme: str = "W4A6", stored: torch.dtype = torch.bfloat16) -> FittedGroup:
    x, vision = mixture(800)
    chosen = spec("qe", adapter_dtype=adapter_dtype, scheme=scheme)
    return fit_group(PLAN.name, weights(), observe(x, vision, weights(), chosen), chosen, scale_dtype=stored)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_every_int8_adapter_is_whole_multiples_of_its_rows_scale(stored: torch.dtype) -> None:
    group = fitted("int8", stored=stored)
    assert group.shared_down is not None
    assert group.routed_down is not None
    pairs = [
        (group.shared_down, group.shared_down_scale),
        (group.routed_down, group.routed_down_scale),
        *zip(group.shared_up, group.shared_up_scale, strict=True),
        *zip(group.routed_up, group.routed_up_scale, strict=True),
    ]
    for values, scale in pairs:
        assert scale is not None
        codes = values / scale.unsqueeze(-1)
        assert torch.equal(codes, codes.round())
        assert int(codes.abs().max()) <= 127
        assert torch.equal(scale, scale.to(stored).float())


def test_int8_adapters_cost_half_the_bits_and_hardly_any_error() -> None:
    group = fitted("int8")
    assert group.in_bf16 is not None
    x, vision = mixture(400, seed=5)
    in_int8 = evaluate_group(group, weights(), x, vision).error.routed
    in_bf16 = evaluate_group(group.in_bf16, weights(), x, vision).error.routed
    assert in_int8 < 1.1 * in_bf16
    (all_int8, base), (all_bf16, same_base) = (
        stored_bits(group_tensors(one, PLAN, dtype=torch.bfloat16)) for one in (group, group.in_bf16)
    )
    assert base == same_base
    # Halves the adapters; router and smoothing stay, and each row adds a scale.
    assert (all_int8 - base) < 0.75 * (all_bf16 - base)


def test_a_method_without_adapters_stores_none_in_int8() -> None:
    x, vision = mixture(300)
    chosen = spec("rtn", adapter_dtype="int8")
    group = fit_group(PLAN.name, weights(), observe(x, vision, weights(), chosen), chosen)
    assert not group.int8_adapters
    assert group.in_bf16 is None


@pytest.mark.parametrize("tokens", [(1,), (3,), (2, 40)], ids=["decode", "few", "prefill"])
def test_the_layer_runs_int8_adapters_as_they_were_measured(tokens: tuple[int, ...]) -> None:
    group = fitted("int8", scheme="W4A16")
    model = nn.Module()
    model.attn = nn.Module()
    for name, weight in weights().items():
        setattr(model.attn, name, nn.Linear(WIDTH, weight.shape[0], bias=False))
    entry = group_config(group, PLAN, dtype=torch.float32)
    assert entry["adapter_dtype"] == "int8"
    install_group(model, entry, group_tensors(group, PLAN, dtype=torch.float32))
    assert model.attn.q.shared_up.dtype == model.attn.qkv_input_group.routed_down.dtype == torch.int8
    x = mixture(int(torch.tensor(tokens).prod()), seed=9)[0].reshape(*tokens, WIDTH)
    for j, name in enumerate(PLAN.layers):
        torch.testing.assert_close(getattr(model.attn, name)(x), by_value(group, x, j), rtol=1e-4, atol=1e-4)


def by_value(group: FittedGroup, x: Tensor, j: int) -> Tensor:
    """The same group computed with its float values, one token at a time."""
    rows = []
    for token in x.reshape(-1, WIDTH):
        h = token if group.smooth is None else token / group.smooth
        assert group.shared_down is not None
        assert group.routed_down is not None
        assert group.router is not None
        i = int((group.router @ h.abs()).argmin())
        turned = h if group.rotation is None else rotate(h, group.rotation.sizes)
        y = dequantize(group.codes[j], group.scales[j], torch.float32) @ turned
        y = y + group.shared_up[j] @ (group.shared_down @ h) + group.routed_up[j][i] @ (group.routed_down[i] @ h)
        rows.append(y)
    return torch.stack(rows).reshape(*x.shape[:-1], -1)
