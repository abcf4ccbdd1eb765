"""The errors that the shared expert leaves, in the space of the outputs. Fitting routed experts there costs far less.

An expert sees its tokens x only through their errors ``E_S x``. They are computed once; a solve then works on (m, m)
matrices, m = min(out, d). For wide outputs the triangle R of ``E_S = Q R`` replaces E_S, which preserves every norm
and every product of errors (docs/method.md, section 4, step 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant_experts.fit.linear_algebra import damped_moment
from quant_experts.fit.problem import GroupProblem


@dataclass(frozen=True)
class OutputErrors:
    """All float32. ``matrix``: (m, d), E_S, or R where out > d. ``tokens``: (R, m), the errors of the reservoir,
    ``x @ matrix.T``. ``prior``: (m, m), the mean of ``E_S x (E_S x)ᵀ`` over all calibration tokens, damped.
    ``reflectors``: Q as LAPACK holds it, (out, d) and (d,), or None."""

    matrix: Tensor
    tokens: Tensor
    prior: Tensor
    reflectors: tuple[Tensor, Tensor] | None

    def expand(self, up: Tensor) -> Tensor:
        """Columns in the coordinates of ``matrix`` as columns of the group's outputs. (N, m, r) → (N, out, r)."""
        if self.reflectors is None:
            return up
        vectors, factors = self.reflectors
        count, m, rank = up.shape
        padded = up.new_zeros(vectors.shape[0], count * rank)
        padded[:m] = up.transpose(0, 1).reshape(m, count * rank)
        columns: Tensor = torch.ormqr(vectors, factors, padded)
        return columns.reshape(-1, count, rank).transpose(0, 1).contiguous()


def output_errors(problem: GroupProblem, error: Tensor) -> OutputErrors:
    """error: (out, d), what the shared expert leaves."""
    out, d = error.shape
    matrix, reflectors = error, None
    if out > d:
        vectors, factors = torch.geqrf(error)
        matrix, reflectors = vectors[:d].triu(), (vectors, factors)
    moment = damped_moment(problem.second_moment, problem.tokens, problem.spec.damping)
    return OutputErrors(matrix, problem.samples @ matrix.T, matrix @ moment(matrix.T), reflectors)
