"""The errors in the report are the errors of the layer that runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quant_experts.checkpoint.layout import group_config, group_tensors, install_group
from quant_experts.fit.fit_group import evaluate_group, fit_group
from quant_experts.model.groups import GroupPlan
from tests.quant_experts.tokens import WIDTH, mixture, observe, spec, weights


class _Attention(nn.Module):
    def __init__(self, layers: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, weight in layers.items():
            self.add_module(name, nn.Linear(weight.shape[1], weight.shape[0], bias=False))
            self.get_submodule(name).weight = nn.Parameter(weight.clone())


def _uneven(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens whose channels differ so much in size that routing on unscaled input would go elsewhere."""
    x, vision = mixture(count, seed=seed)
    return x * torch.logspace(-1.5, 1.5, WIDTH)[
        torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))
    ], vision


@pytest.mark.parametrize("method", ["rtn", "smoothquant", "aser", "qe", "qe-gptq", "qe-paper"])
@pytest.mark.parametrize("smoothing", ["none", "outlier", "smoothquant"])
def test_evaluation_equals_the_stored_layers_forward(method: str, smoothing: str) -> None:
    layers = weights()
    chosen = spec(method, group_size=32, smoothing=smoothing)
    fitted = fit_group("attn.qkv", layers, observe(*_uneven(600, 0), layers, chosen), chosen)
    plan = GroupPlan(
        name="attn.qkv", parent="attn", label="qkv", layers=("q", "k"), block=0, width=WIDTH, outs=(48, 16)
    )
    model = nn.ModuleDict({"attn": _Attention(layers)})
    tensors = group_tensors(fitted, plan, dtype=torch.float32)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    install_group(model, group_config(fitted, plan, dtype=torch.float32), tensors)
    x, vision = _uneven(300, 5)
    with torch.no_grad():
        outputs = torch.cat([model.get_submodule(f"attn.{layer}")(x) for layer in layers], dim=1)
    exact = x @ torch.cat(list(layers.values())).T
    measured = float((outputs - exact).square().sum() / exact.square().sum())
    assert measured == pytest.approx(evaluate_group(fitted, layers, x, vision).error.routed, rel=1e-3)


def test_modalities_are_reported_apart_and_only_where_they_exist() -> None:
    layers = weights()
    chosen = spec("qe")
    fitted = fit_group("g", layers, observe(*mixture(600), layers, chosen), chosen)
    x, vision = mixture(300, seed=5)
    both = evaluate_group(fitted, layers, x, vision)
    only_text = evaluate_group(fitted, layers, x[~vision], vision[~vision])
    assert only_text.error_vision is None
    assert both.error_text is not None
    assert both.error_text.routed == pytest.approx(only_text.error.routed, rel=1e-6)


def test_no_token_is_an_error_that_names_the_group() -> None:
    layers = weights()
    chosen = spec("rtn")
    fitted = fit_group("layers.3.qkv", layers, observe(*mixture(100), layers, chosen), chosen)
    with pytest.raises(ValueError, match=r"layers.3.qkv: no held-out token"):
        evaluate_group(fitted, layers, torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.bool))
