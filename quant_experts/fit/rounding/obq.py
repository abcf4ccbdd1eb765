"""Optimal brain quantization (Frantar, Alistarh, NeurIPS 2022): each row rounds its weights in its own greedy order.

In every step a row rounds the weight that costs least, ``(w - q)² / [H⁻¹]_pp``, and its other weights make up for it.
H⁻¹ of what remains differs from row to row, so that a row costs d³/2 multiplications; that limits the width.

The shrinking H⁻¹ is never formed. After j steps it is ``H⁻¹ - Vᵀ V``, H⁻¹ the same for all rows and V (j, d) the pivot
rows so far, each divided by the root of its pivot: a Cholesky factorisation whose pivots the weights choose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.errors import InvalidSpec
from quant_experts.fit.linear_algebra import cholesky
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.rounding import Rounded
from quant_experts.fit.weight_grid import grid_of

WIDTH_LIMIT = 1024

WORKSPACE = 2**28
"""Bytes of V for the rows that are worked on together."""

OUTSIDE = 1 + 1e-6
"""A weight whose error exceeds half a step by more than rounding noise lies outside of the grid."""


def check(width: int, name: str) -> None:
    """Raises InvalidSpec for an input group that is too wide, naming it, its width and the limit."""
    if width > WIDTH_LIMIT:
        raise InvalidSpec(
            f"rounding obq: input group {name} is {width} channels wide and the limit is {WIDTH_LIMIT}, because each "
            "row costs its width to the third power; use gptq"
        )


def round_weights(problem: GroupProblem, exempt: Tensor) -> Rounded:
    """Scales are fixed before rounding, as for GPTQ; exempt columns are zero, and no error is moved into them.

    Raises InvalidSpec for a group that is too wide, NumericalFailure naming the group when the second moment cannot be
    factorised.
    """
    check(problem.width, problem.name)
    weight = problem.weight.masked_fill(exempt, 0)
    grid = grid_of(problem, weight)
    columns = (~exempt).nonzero().flatten()
    codes = torch.zeros_like(weight, dtype=torch.int8)
    if len(columns):
        inverse = _inverse(problem, columns, exempt)
        rows = max(1, WORKSPACE // (8 * len(columns) ** 2))
        work = torch.split(weight[:, columns].double(), rows)
        steps = torch.split(grid.scales[:, columns // problem.group_size].double(), rows)
        rounded = [
            _round_rows(part, step, inverse, grid.low, grid.high) for part, step in zip(work, steps, strict=True)
        ]
        codes[:, columns] = torch.cat(rounded).to(torch.int8)
    return Rounded(codes, grid.scales)


def _inverse(problem: GroupProblem, columns: Tensor, exempt: Tensor) -> Tensor:
    """Inverse of the damped moment of the columns that are rounded, (n, n) float64. Damped as GPTQ does it: by the
    mean over all columns, exempt ones included."""
    order = torch.cat([columns, exempt.nonzero().flatten()])
    lower = cholesky(problem.name, problem.second_moment[order][:, order], problem.tokens, problem.spec.damping)
    inverse: Tensor = torch.cholesky_inverse(lower[: len(columns), : len(columns)].double())
    return inverse


def _round_rows(work: Tensor, step: Tensor, inverse: Tensor, low: int, high: int) -> Tensor:
    """work, step: (rows, n) float64, ``work`` is used up; inverse: (n, n). Returns integers (rows, n) float64."""
    rows, n = work.shape
    codes = torch.zeros_like(work)
    # [H⁻¹]_pp of each row's remaining weights.
    diagonal = inverse.diagonal().expand(rows, n).clone()
    floor = inverse.diagonal() * torch.finfo(torch.float64).eps
    open_ = torch.ones_like(work, dtype=torch.bool)
    pivots = work.new_empty(rows, n, n)
    everyone = torch.arange(rows, device=work.device)
    for count in range(n):
        nearest = (work / step).round_().clamp_(low, high)
        error = work - nearest * step
        next_column = _cheapest(error, step, diagonal, open_)
        at = (everyone, next_column)
        past = pivots[:, :count]
        column = inverse[next_column] - torch.bmm(past[everyone, :, next_column].unsqueeze(1), past).squeeze(1)
        pivot = torch.maximum(diagonal[at], floor[next_column]).sqrt()
        column = column.masked_fill(~open_, 0) / pivot.unsqueeze(1)
        codes[at] = nearest[at]
        work -= column * (error[at] / pivot).unsqueeze(1)
        pivots[:, count] = column
        diagonal = torch.maximum(diagonal - column.square(), floor)
        open_[at] = False
    return codes


def _cheapest(error: Tensor, step: Tensor, diagonal: Tensor, open_: Tensor) -> Tensor:
    """The weight that each row rounds next, (rows,) int64.

    One that was pushed outside of the grid goes first (the paper's section 5): waiting only pushes it further.
    """
    cost = error.square() / diagonal
    outside = error.abs() > step.abs() * (0.5 * OUTSIDE)
    cost = torch.where(outside, -error.abs(), cost)
    return cost.masked_fill(~open_, float("inf")).argmin(-1)
