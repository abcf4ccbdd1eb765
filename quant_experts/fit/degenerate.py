"""Warn about inputs that a fit survives but cannot learn from, so that nobody trusts its numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quant_experts.errors import NumericalFailure
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.rounding import Rounded


def warnings_about(problem: GroupProblem, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Warnings about the group's weights and inputs, before any scaling. weights: layer name → (out_j, d)."""
    zeros = [layer for layer, weight in weights.items() if not bool(weight.any())]
    of_weights = (f"{problem.name}: the weights of {', '.join(zeros)} are all zero",) if zeros else ()
    return of_weights + _of_inputs(problem)


def _of_inputs(problem: GroupProblem) -> tuple[str, ...]:
    name, tokens = problem.name, problem.samples.shape[0]
    if not bool(problem.max_abs.any()):
        return (f"{name}: the inputs of all {problem.tokens} calibration tokens are zero; nothing could be learnt",)
    same = problem.samples.amax(0) == problem.samples.amin(0)
    if bool(same.all()):
        reason = (
            "only one calibration token reached it"
            if tokens == 1
            else f"all {tokens} tokens looked at have the same input"
        )
        return (f"{name}: {reason}; it is fitted to that one alone",)
    constant = int(same.sum())
    if constant:
        return (f"{name}: {constant} of {problem.width} input channels are the same for all calibration tokens",)
    return ()


def refuse_overflow(name: str, rounded: Rounded, scale_dtype: torch.dtype) -> None:
    """Raises NumericalFailure naming the group when a weight scale is not finite in the dtype that stores it."""
    bad = int((~torch.isfinite(rounded.scales)).sum())
    if bad:
        raise NumericalFailure(
            f"input group {name}: {bad} weight scales are too large for {scale_dtype}; the model's weights are "
            "damaged, or it needs a bfloat16 copy or another smoothing"
        )
