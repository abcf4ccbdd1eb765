"""GPTQ (Frantar et al., ICLR 2023): round column by column, and let the columns that follow make up for the error.

Columns are taken by falling second moment (the paper's act-order) with scales fixed before rounding, so that groups
need not be contiguous in that order. Work is done in blocks of columns: inside a block rank-one updates, after it one
matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.fit.linear_algebra import cholesky
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.rounding import Rounded
from quant_experts.fit.weight_grid import grid_of

BLOCK = 128


def round_weights(problem: GroupProblem, exempt: Tensor) -> Rounded:
    """Raises NumericalFailure naming the group when the second moment cannot be factorised."""
    weight = problem.weight.masked_fill(exempt, 0)
    grid = grid_of(problem, weight)
    order = _order(problem.second_moment.diagonal(), exempt)
    factor = _inverse_factor(problem, order)
    work = weight[:, order].contiguous()
    step = grid.scales[:, order // problem.group_size]
    codes = torch.zeros_like(weight, dtype=torch.int8)
    codes[:, order] = _round_in_order(work, step, factor, grid.low, grid.high).to(torch.int8)
    return Rounded(codes, grid.scales)


def _order(diagonal: Tensor, exempt: Tensor) -> Tensor:
    """Exempt columns first: they are exactly zero, leave no error, and no later error may be moved into them."""
    key = diagonal.masked_fill(exempt, float("inf"))
    return key.argsort(descending=True, stable=True)


def _inverse_factor(problem: GroupProblem, order: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped moment in that order, (d, d) float32."""
    moment = problem.second_moment[order][:, order]
    lower = cholesky(problem.name, moment, problem.tokens, problem.spec.damping)
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return factor.float()


def _round_in_order(work: Tensor, step: Tensor, factor: Tensor, low: int, high: int) -> Tensor:
    """work, step: (out, d) in processing order; ``work`` is used up. Returns integers (out, d) float32."""
    d = work.shape[1]
    codes = torch.empty_like(work)
    for begin in range(0, d, BLOCK):
        end = min(begin + BLOCK, d)
        block, steps, upper = work[:, begin:end], step[:, begin:end], factor[begin:end, begin:end]
        errors = torch.empty_like(block)
        for i in range(end - begin):
            column = block[:, i]
            code = (column / steps[:, i]).round_().clamp_(low, high)
            error = (column - code * steps[:, i]) / upper[i, i]
            block[:, i:] -= error.unsqueeze(1) * upper[i, i:]
            codes[:, begin + i] = code
            errors[:, i] = error
        work[:, end:] -= errors @ factor[begin:end, end:]
    return codes
