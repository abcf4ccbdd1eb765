"""Fit one input group of the block in memory, measure it on held-out tokens, and turn it into tensors to store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quant_experts.checkpoint.layout import adapter_dtype, group_config, group_tensors, stored_bits, weight_scale_dtype
from quant_experts.fit.channel_statistics import describe_channels
from quant_experts.fit.fit_group import FittedGroup, evaluate_group, fit_group
from quant_experts.fit.problem import EQUAL_WEIGHTS
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.groups import GroupPlan
from quant_experts.report.data import GroupReport
from quant_experts.walk.baseline import baseline_error, is_baseline
from quant_experts.walk.group_settings import GroupSettings
from quant_experts.walk.observe import GroupObservation, group_weights


@dataclass(frozen=True)
class GroupInBlock:
    """A fitted group. ``entry``: for quantization_config. ``tensors``: by full name, on the CPU. ``bits``: stored bits,
    (all, base alone)."""

    report: GroupReport
    entry: dict[str, Any]
    tensors: dict[str, Tensor]
    bits: tuple[int, int]


def fit_in_block(
    blueprint: Blueprint, plan: GroupPlan, observation: GroupObservation, settings: GroupSettings
) -> GroupInBlock:
    """Fit the group. The block holds its full-precision weights before and after.

    Raises NumericalFailure naming the group, InvalidSpec for an unknown choice.
    """
    weights = group_weights(blueprint, plan)
    spec = settings.spec_of(plan.name).for_group(of_mixture=plan.of_mixture)
    fitted = fit_group(
        plan.name,
        weights,
        observation.observation,
        spec,
        scale_dtype=adapter_dtype(blueprint.dtype),
        modality_weights=settings.modality_weights.get(plan.name, EQUAL_WEIGHTS),
    )
    scale_dtype = weight_scale_dtype(spec, blueprint.dtype)
    ranks = spec.ranks_for(rows=sum(plan.outs), width=plan.width, layers=len(plan.layers))
    tensors = group_tensors(fitted, plan, dtype=blueprint.dtype, scale_dtype=scale_dtype)
    bits = stored_bits(tensors)
    errors = evaluate_group(fitted, weights, observation.tokens, observation.vision)
    error_bf16, bits_bf16 = _with_adapters_in_bf16(blueprint, plan, fitted, weights, observation, scale_dtype)
    report = GroupReport(
        name=plan.name,
        block=plan.block,
        layers=list(plan.layers),
        tokens=errors.tokens,
        error=errors.error,
        error_vision=errors.error_vision,
        error_text=None if plan.reads_audio else errors.error_text,
        sqnr_db=errors.sqnr_db,
        expert_usage=list(errors.expert_usage),
        smoothing=fitted.smoothing,
        effective_bits=bits[0] / plan.weights,
        weight_bits=fitted.weight_bits,
        error_rtn=errors.error.routed
        if is_baseline(spec)
        else baseline_error(
            fitted, weights, observation.tokens, observation.vision, scale_dtype=adapter_dtype(blueprint.dtype)
        ),
        error_bf16=error_bf16,
        effective_bits_bf16=bits_bf16,
        channels=describe_channels(observation.observation, observation.importance, observation.tokens, spec, ranks),
        sensitivity=settings.sensitivity.get(plan.name),
        tokens_routed=observation.routed,
        tokens_borrowed=observation.borrowed,
        warnings=list(fitted.warnings),
    )
    return GroupInBlock(report, group_config(fitted, plan, dtype=blueprint.dtype), tensors, bits)


def _with_adapters_in_bf16(
    blueprint: Blueprint,
    plan: GroupPlan,
    fitted: FittedGroup,
    weights: dict[str, Tensor],
    observation: GroupObservation,
    scale_dtype: torch.dtype,
) -> tuple[float | None, float | None]:
    """Error and stored bits per weight of the same group with adapters in bfloat16; None for a group without int8
    adapters."""
    other = fitted.in_bf16
    if other is None:
        return None, None
    error = evaluate_group(other, weights, observation.tokens, observation.vision).error.routed
    tensors = group_tensors(other, plan, dtype=blueprint.dtype, scale_dtype=scale_dtype)
    return error, stored_bits(tensors)[0] / plan.weights
