"""GPTQ, and then coordinate descent: integers one by one and scales by least squares, until the error hardly falls.

GPTQ fixes each column once, before it knows the errors of the columns behind. A sweep visits every column again and
puts its integer where the output error is smallest with all others as they are (Behdin et al. 2023, "QuantEase",
arXiv 2309.01885). Between sweeps each row's scales are those that leave the smallest error with its integers as they
are. Neither step can raise the error, but for the rounding of the scales to their stored dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.rounding import Rounded, gptq
from quant_experts.fit.weight_grid import code_range

SWEEPS = 3
BLOCK = 128
RIDGE = 1e-4
"""Of a scale's own curvature: two groups of a row whose integers are alike to the inputs share the error then."""


def round_weights(problem: GroupProblem, exempt: Tensor) -> Rounded:
    """Raises NumericalFailure naming the group when the second moment cannot be factorised."""
    start = gptq.round_weights(problem, exempt)
    weight = problem.weight.masked_fill(exempt, 0)
    moment = _damped(problem)
    low, high = code_range(problem.spec)
    codes, scales = start.codes.float(), start.scales
    for _ in range(SWEEPS):
        scales = _best_scales(weight, codes, scales, moment, problem.scale_dtype)
        _sweep(weight, codes, scales, moment, ~exempt, low, high)
    return Rounded(codes.to(torch.int8), scales)


def _damped(problem: GroupProblem) -> Tensor:
    """(d, d), as GPTQ damps it; the identity where no token brought anything."""
    moment = problem.second_moment / problem.tokens
    mean = float(moment.diagonal().mean())
    moment.diagonal().add_(problem.spec.damping * mean if mean > 0 else 1.0)
    return moment


def _best_scales(weight: Tensor, codes: Tensor, scales: Tensor, moment: Tensor, dtype: torch.dtype) -> Tensor:
    """The scales of each row that minimise ``(w - q) M (w - q)ᵀ``, q its integers times them; (out, d / g) float32.

    A group of zeros keeps its scale, and so does a row whose solution cannot be stored.
    """
    rows, groups = scales.shape
    codes_by_group = codes.view(rows, groups, -1)
    size = codes_by_group.shape[-1]
    onto = (codes_by_group * (weight @ moment).view_as(codes_by_group)).sum(-1)
    curvature = weight.new_empty(rows, groups, groups)
    for group in range(groups):
        product = codes_by_group[:, group] @ moment[group * size : (group + 1) * size]
        curvature[:, group] = (codes_by_group * product.view_as(codes_by_group)).sum(-1)
    own = curvature.diagonal(dim1=1, dim2=2)
    empty = own == 0
    own.mul_(1 + RIDGE).add_(empty)
    solution, info = torch.linalg.solve_ex(curvature, onto.unsqueeze(-1))
    candidates = solution.squeeze(-1).to(dtype).float()
    unusable = (~torch.isfinite(candidates) | (candidates == 0)) & ~empty
    return torch.where(empty | unusable.any(-1, keepdim=True) | (info != 0).unsqueeze(-1), scales, candidates)


def _sweep(weight: Tensor, codes: Tensor, scales: Tensor, moment: Tensor, columns: Tensor, low: int, high: int) -> None:
    """Visit each of ``columns`` (d,) bool once and change ``codes``. As in GPTQ, the gradient of the columns behind a
    block is brought up to date with one matrix product."""
    rows, d = codes.shape
    step = scales.repeat_interleave(d // scales.shape[1], dim=1)
    slope = (weight - codes * step) @ moment
    curvature = moment.diagonal()
    for begin in range(0, d, BLOCK):
        end = min(begin + BLOCK, d)
        inside, local = moment[begin:end, begin:end], slope[:, begin:end].clone()
        change = weight.new_zeros(rows, end - begin)
        for i in range(end - begin):
            column = begin + i
            if not columns[column]:
                continue
            exact = codes[:, column] + local[:, i] / (curvature[column] * step[:, column])
            nearest = exact.round_().clamp_(low, high)
            change[:, i] = (nearest - codes[:, column]) * step[:, column]
            codes[:, column] = nearest
            local -= change[:, i : i + 1] * inside[i]
        slope[:, end:] -= change @ moment[begin:end, end:]
