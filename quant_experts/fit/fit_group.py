"""Fit one input group: scale, round, reconstruct (method.md, section 4).

``fit_group`` needs the group's weights and an ``Observation``, no model and no files. The result holds
exactly the values that a checkpoint stores: everything is already rounded to the stored dtype.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quant_experts.errors import InvalidSpec, NumericalFailure
from quant_experts.fit import reconstruction, rounding, smoothing
from quant_experts.fit.adapter_storage import with_adapters, with_int8_adapters
from quant_experts.fit.degenerate import refuse_overflow, warnings_about
from quant_experts.fit.experts.partition import partition_channels
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.group_evaluation import GroupErrors, evaluate_group
from quant_experts.fit.problem import EQUAL_WEIGHTS, GroupProblem, ModalityWeights
from quant_experts.fit.statistics import Observation, channel_importance, important_channels
from quant_experts.forward.modeling_quant_experts import dequantize, rotate
from quant_experts.spec.specification import QuantizationSpec

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
    Raises NumericalFailure naming the group for non-finite weights, a second moment that cannot be factorised, or a
    scale beyond the stored dtype; InvalidSpec for an unknown slot choice or a width that the rounding refuses.
    """
    weight = _stacked(name, weights)
    group_size, warned_size = _resolve_group_size(name, spec, weight.shape[1])
    importance = channel_importance(weight)
    k, warned_k = _resolve_important(name, spec, weight.shape[1])
    ranks = spec.ranks_for(rows=weight.shape[0], width=weight.shape[1], layers=len(weights))
    partition = partition_channels(observation.counts, observation.mean_abs * importance, k=k, experts=ranks.experts)
    important = important_channels(observation.tokens_kept, importance, k)
    original = GroupProblem.of(
        weight, observation, important, partition, spec, ranks, group_size, scale_dtype, modality_weights
    )
    scaling = smoothing.get(spec.smoothing).smooth(original)
    problem = original.scaled(scaling.scale).rotated_by(scaling.rotation)
    choice = reconstruction.get(spec.reconstruction)
    rounded = rounding.get(spec.rounding).round_weights(problem.of_the_base(), choice.exempt_columns(problem))
    refuse_overflow(name, rounded, scale_dtype)
    base = dequantize(rounded.codes, rounded.scales, torch.float32)
    if scaling.rotation is not None:
        base = rotate(base, scaling.rotation.sizes)
    adapters = choice.reconstruct(problem, base)
    outs = [w.shape[0] for w in weights.values()]
    fitted = FittedGroup(
        name=name,
        layers=tuple(weights),
        weight_bits=spec.bits.weight_bits,
        activation_bits=spec.bits.activation_bits,
        group_size=group_size,
        smoothing=scaling.label,
        codes=torch.split(rounded.codes, outs),
        scales=torch.split(rounded.scales, outs),
        smooth=_stored_scale(spec, scaling.scale, weight),
        rotation=scaling.rotation,
        warnings=warned_size + warned_k + warnings_about(original, weights) + adapters.warnings,
    )
    fitted = with_adapters(fitted, adapters, scale_dtype)
    if spec.adapter_dtype == "int8" and (adapters.shared_up is not None or adapters.routed_up is not None):
        fitted = with_int8_adapters(fitted, adapters, scale_dtype)
    return fitted


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


def _stored_scale(spec: QuantizationSpec, scale: Tensor | None, weight: Tensor) -> Tensor | None:
    """(d,) float32. A search that ends without a scale stores ones, so that what a group takes on disk is known before
    anything runs; dividing by one changes no bit."""
    if scale is None and spec.smoothing != "none":
        return weight.new_ones(weight.shape[1])
    return scale


def _resolve_group_size(name: str, spec: QuantizationSpec, width: int) -> tuple[int, tuple[str, ...]]:
    """Raises InvalidSpec when a size that was asked for does not divide the width."""
    size = spec.group_size_for(width)
    if width % size:
        raise InvalidSpec(
            f"{name}: group size {size} does not divide the input width {width}; use a size that does, or leave it out"
        )
    if spec.group_size == "auto" and size not in spec.group_sizes:
        sizes = " or ".join(map(str, spec.group_sizes))
        return size, (f"{name}: group size {sizes} does not divide the input width {width}; one scale per row used",)
    return size, ()


def _resolve_important(name: str, spec: QuantizationSpec, width: int) -> tuple[int, tuple[str, ...]]:
    """k, at most half of the channels: with all of them exempt nothing would be left to quantize."""
    largest = max(width // 2, 1)
    if spec.important_channels <= largest:
        return spec.important_channels, ()
    return largest, (
        f"{name}: important_channels {spec.important_channels} is over half of {width}; clamped to {largest}",
    )
