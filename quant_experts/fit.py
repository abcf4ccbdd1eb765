"""Fit one input group: scale, round, reconstruct (method.md, section 4).

:func:`fit_group` needs the group's weights and an :class:`Observation`, no model and no files. The result holds
exactly the values that a checkpoint stores: everything is already rounded to the stored dtype.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quant_experts import reconstruction, rounding, smoothing
from quant_experts.config import QuantizationSpec
from quant_experts.errors import InvalidSpec, NumericalFailure
from quant_experts.experts.partition import partition_channels
from quant_experts.experts.router import normalised
from quant_experts.fitted import FittedGroup
from quant_experts.group_evaluation import GroupErrors, evaluate_group
from quant_experts.problem import EQUAL_WEIGHTS, GroupProblem, ModalityWeights
from quant_experts.quantizer import dequantize
from quant_experts.reconstruction import Adapters
from quant_experts.statistics import Observation, channel_importance, important_channels

DEFAULT_GROUP_SIZE = 128

__all__ = ["FittedGroup", "GroupErrors", "evaluate_group", "fit_group"]


@torch.no_grad()
def fit_group(
    name: str,
    weights: Mapping[str, Tensor],
    observation: Observation,
    spec: QuantizationSpec,
    *,
    scale_dtype: torch.dtype = torch.bfloat16,
    modality_weights: ModalityWeights = EQUAL_WEIGHTS,
) -> FittedGroup:
    """Quantize the layers that share one input.

    weights: layer name → (out_j, d), any float dtype, in the order of the group; observation: of the same input, on
    the same device. ``scale_dtype``: the dtype that the checkpoint stores scales and adapters in.
    ``modality_weights``: for choices that weigh vision and text tokens apart.
    Raises NumericalFailure naming the group for non-finite weights or a second moment that cannot be factorised;
    InvalidSpec for an unknown slot choice.
    """
    weight = _stacked(name, weights)
    group_size, warned_size = _resolve_group_size(name, spec, weight.shape[1])
    importance = channel_importance(weight)
    k, warned_k = _resolve_important(name, spec, weight.shape[1])
    partition = partition_channels(observation.counts, observation.mean_abs * importance, k=k, experts=spec.experts)
    important = important_channels(observation.tokens_kept, importance, k)
    original = GroupProblem.of(
        weight, observation, important, partition, spec, group_size, scale_dtype, modality_weights
    )
    scaling = smoothing.get(spec.smoothing).smooth(original)
    problem = original.scaled(scaling.scale)
    choice = reconstruction.get(spec.reconstruction)
    rounded = rounding.get(spec.rounding).round_weights(problem, choice.exempt_columns(problem))
    adapters = choice.reconstruct(problem, dequantize(rounded.codes, rounded.scales, group_size))
    stored = _as_stored(name, adapters, scale_dtype)
    outs = [w.shape[0] for w in weights.values()]
    return FittedGroup(
        name=name,
        layers=tuple(weights),
        weight_bits=spec.bits.weight_bits,
        activation_bits=spec.bits.activation_bits,
        group_size=group_size,
        smoothing=scaling.label,
        codes=torch.split(rounded.codes, outs),
        scales=torch.split(rounded.scales, outs),
        smooth=scaling.scale,
        shared_down=stored.shared_down,
        shared_up=() if stored.shared_up is None else torch.split(stored.shared_up, outs),
        routed_down=stored.routed_down,
        routed_up=() if stored.routed_up is None else torch.split(stored.routed_up, outs, dim=1),
        router=stored.router,
        warnings=warned_size + warned_k + adapters.warnings,
    )


def _stacked(name: str, weights: Mapping[str, Tensor]) -> Tensor:
    """(out, d) float32, all layers. Raises NumericalFailure naming the layer with a value that is not finite."""
    for layer, weight in weights.items():
        bad = int((~torch.isfinite(weight)).sum())
        if bad:
            raise NumericalFailure(
                f"input group {name}: the weight of {layer} holds {bad} values that are not finite; "
                "the model's files are damaged or the model diverged in training"
            )
    return torch.cat([weight.float() for weight in weights.values()])


def _resolve_group_size(name: str, spec: QuantizationSpec, width: int) -> tuple[int, tuple[str, ...]]:
    """Raises InvalidSpec when a size that was asked for does not divide the width."""
    if spec.group_size == "channel":
        return width, ()
    size = DEFAULT_GROUP_SIZE if spec.group_size == "auto" else spec.group_size
    if width % size == 0:
        return size, ()
    if spec.group_size == "auto":
        return width, (f"{name}: group size {size} does not divide the input width {width}; one scale per row used",)
    raise InvalidSpec(
        f"{name}: group size {size} does not divide the input width {width}; use a size that does, or leave it out"
    )


def _resolve_important(name: str, spec: QuantizationSpec, width: int) -> tuple[int, tuple[str, ...]]:
    """k, at most half of the channels: with all of them exempt nothing would be left to quantize."""
    largest = max(width // 2, 1)
    if spec.important_channels <= largest:
        return spec.important_channels, ()
    return largest, (
        f"{name}: important_channels {spec.important_channels} is over half of {width}; clamped to {largest}",
    )


def _as_stored(name: str, adapters: Adapters, dtype: torch.dtype) -> Adapters:
    """Adapters rounded to ``dtype``, with up and down of equal size, so that float16 loses neither to underflow.

    Raises NumericalFailure naming the group when a value is not finite.
    """
    shared = _balanced_pair(adapters.shared_up, adapters.shared_down)
    routed = _balanced_pair(adapters.routed_up, adapters.routed_down)
    router = None if adapters.router is None else normalised(adapters.router)
    rounded = [None if part is None else part.to(dtype).float() for part in (*shared, *routed, router)]
    if any(part is not None and not bool(torch.isfinite(part).all()) for part in rounded):
        raise NumericalFailure(
            f"input group {name}: an expert holds a value that is not finite in {dtype}; "
            "raise `damping` or use more calibration samples"
        )
    shared_up, shared_down, routed_up, routed_down, router = rounded
    return Adapters(shared_up, shared_down, routed_up, routed_down, router)


def _balanced_pair(up: Tensor | None, down: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """up (..., out, r) and down (..., r, d) with the same product and, rank by rank, the same root mean square."""
    if up is None or down is None:
        return None, None
    up_size = up.square().mean(-2).sqrt()
    down_size = down.square().mean(-1).sqrt()
    ratio = torch.where(
        (up_size > 0) & (down_size > 0), (down_size / up_size.clamp_min(1e-30)).sqrt(), torch.ones_like(up_size)
    )
    return up * ratio.unsqueeze(-2), down / ratio.unsqueeze(-1)
