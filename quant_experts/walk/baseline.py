"""The baseline of every report: each group rounded to nearest at its own bits, and nothing else.

It shows what the method gains on the same rows. Held-out rows travel the walk in a stream of their own, behind blocks
that are rounded so, and each group's error has its counterpart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.checkpoint.layout import adapter_dtype
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.group_evaluation import evaluate_group
from quant_experts.fit.quantizer import quantize, round_tokens
from quant_experts.forward.modeling_quant_experts import dequantize
from quant_experts.model.block_runner import hooked
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.groups import GroupPlan
from quant_experts.spec.specification import QuantizationSpec


def is_baseline(spec: QuantizationSpec) -> bool:
    """Whether the method is rounding to nearest itself, so that its own figures are the baseline's."""
    return (spec.smoothing, spec.rounding, spec.reconstruction, spec.weight_grid) == ("none", "rtn", "none", "max")


def baseline_error(
    fitted: FittedGroup, weights: Mapping[str, Tensor], tokens: Tensor, vision: Tensor, *, scale_dtype: torch.dtype
) -> float:
    """Relative squared output error of the unscaled weights rounded to nearest, at the bits of ``fitted``.

    Arguments as for ``evaluate_group``.
    """
    rounded_layers = [
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
        codes=tuple(codes for codes, _ in rounded_layers),
        scales=tuple(scales for _, scales in rounded_layers),
        smooth=None,
        warnings=(),
    )
    return evaluate_group(plain, weights, tokens, vision).error.routed


@contextmanager
def layers_rounded_to_nearest(
    blueprint: Blueprint, plans: Sequence[GroupPlan], entries: Sequence[Mapping[str, Any]]
) -> Iterator[None]:
    """The layers of all groups rounded to nearest while this is open; their full-precision weights are lost.

    ``entries``: of the fitted groups, for their bits and group sizes.
    """
    scale_dtype = adapter_dtype(blueprint.dtype)
    with ExitStack() as stack:
        for plan, entry in zip(plans, entries, strict=True):
            bits = (entry["weight_bits"], entry["activation_bits"])
            rounding = overwritten_by_rounding(group_layers(blueprint, plan), *bits, entry["group_size"], scale_dtype)
            stack.enter_context(rounding)
        yield


@contextmanager
def overwritten_by_rounding(
    layers: Sequence[nn.Linear], weight_bits: int, activation_bits: int, group_size: int, scale_dtype: torch.dtype
) -> Iterator[None]:
    """Overwrite the layers' weights with what a checkpoint's layers would dequantize, and round their inputs while this
    is open. The weights stay overwritten."""

    def round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (round_tokens(args[0], activation_bits), *args[1:])

    for layer in layers:
        weight = layer.weight.detach()
        codes, scales = quantize(weight, weight_bits, group_size, scale_dtype)
        weight.copy_(dequantize(codes, scales, weight.dtype))
    with hooked(layer.register_forward_pre_hook(round_input) for layer in layers):
        yield


def group_layers(blueprint: Blueprint, plan: GroupPlan) -> list[nn.Linear]:
    """The linear layers of the group, in its order."""
    parent = blueprint.model.get_submodule(plan.parent)
    return [parent.get_submodule(layer) for layer in plan.layers]
