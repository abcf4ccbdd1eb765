"""The baseline of every report: each group rounded to nearest at its own bits, and nothing else.

It says what the method bought on the same rows. Held-out rows travel the walk behind blocks that are rounded so, in
a stream of their own; and each group's error has its counterpart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.checkpoint.layout import adapter_dtype
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.group_evaluation import evaluate_group
from quant_experts.fit.quantizer import quantize
from quant_experts.forward.modeling_quant_experts import dequantize, fake_quantize_tokens
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.groups import GroupPlan
from quant_experts.spec.schemes import UNQUANTIZED
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.observe import group_weights


def is_baseline(spec: QuantizationSpec) -> bool:
    """Whether the method is rounding to nearest itself, so that its own figures are the baseline's."""
    return (spec.smoothing, spec.rounding, spec.reconstruction, spec.weight_grid) == ("none", "rtn", "none", "max")


def baseline_error(
    fitted: FittedGroup, weights: Mapping[str, Tensor], tokens: Tensor, vision: Tensor, *, scale_dtype: torch.dtype
) -> float:
    """Relative squared output error of the unscaled weights rounded to nearest, at the bits of ``fitted``.

    Arguments as for :func:`evaluate_group`.
    """
    rounded = [
        quantize(weights[layer].to(codes.device), fitted.weight_bits, fitted.group_size, scale_dtype)
        for layer, codes in zip(fitted.layers, fitted.codes, strict=True)
    ]
    plain = FittedGroup(
        name=fitted.name,
        layers=fitted.layers,
        weight_bits=fitted.weight_bits,
        activation_bits=fitted.activation_bits,
        group_size=fitted.group_size,
        smoothing="none",
        codes=tuple(codes for codes, _ in rounded),
        scales=tuple(scales for _, scales in rounded),
        smooth=None,
        warnings=(),
    )
    return evaluate_group(plain, weights, tokens, vision).error.routed


@contextmanager
def rounded_to_nearest(
    blueprint: Blueprint, plans: Sequence[GroupPlan], entries: Sequence[Mapping[str, Any]]
) -> Iterator[None]:
    """Weights overwritten with what a checkpoint's layers would dequantize; inputs rounded while this is open.

    ``entries``: of the fitted groups, for their bits and group sizes. The block's linear layers still hold their
    full-precision weights, and lose them here: what comes next is putting the fitted layers in their place.
    """
    scale_dtype = adapter_dtype(blueprint.dtype)
    hooks = []
    try:
        for plan, entry in zip(plans, entries, strict=True):
            parent = blueprint.model.get_submodule(plan.parent)
            for layer, weight in group_weights(blueprint, plan).items():
                codes, scales = quantize(weight, entry["weight_bits"], entry["group_size"], scale_dtype)
                weight.copy_(dequantize(codes, scales, weight.dtype))
                hooks.append(parent.get_submodule(layer).register_forward_pre_hook(_rounding(entry["activation_bits"])))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rounding(bits: int) -> Any:
    """A hook that rounds a linear layer's input, token by token."""

    def round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if bits == UNQUANTIZED else (fake_quantize_tokens(args[0], bits).to(args[0].dtype), *args[1:])

    return round_input
