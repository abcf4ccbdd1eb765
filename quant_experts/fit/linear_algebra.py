"""The linear algebra of the fit: damping, Cholesky, and the best low-rank approximation in the whitened norm.

A second moment is used as an operator, ``apply(v)`` = (H/T + damp·I) v for v: (d, l), so that a weighted moment of R
tokens is never formed: applying it costs R·d·l instead of R·d².
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quant_experts.errors import NumericalFailure

Operator = Callable[[Tensor], Tensor]
"""v: (d, l) → (d, l), symmetric and positive."""

OVERSAMPLING = 16
ITERATIONS = 4
"""Subspace iterations. Three miss the exact truncated SVD by more than 0.2 % on a flat spectrum, the hardest one
(tests/quant_experts/test_linalg.py); on the real layers of benchmarks/layers.py eight change the fourth digit only."""

ITERATIONS_NEAR = 2
"""Enough when the start is the answer to a similar problem, as in Lloyd rounds."""

FLOAT64_WIDTH = 8192
"""Widths up to this are factorised in float64; above it (the down projections of 7B models) float64 copies of the
moment would cost gigabytes, and float32 with damping holds."""


def damped_moment(second_moment: Tensor, tokens: float, damping: float) -> Operator:
    """H/T + damping · mean(diag(H/T)) · I as an operator. second_moment: (d, d), a sum over ``tokens``."""
    shift = damping * float(second_moment.diagonal().mean()) / tokens
    return lambda v: (second_moment @ v) / tokens + shift * v


def token_moment(x: Tensor, weight: Tensor, prior: Operator, prior_weight: float) -> Operator:
    """(Σ_t ω_t x_t x_tᵀ + prior_weight · prior) / (Σ ω + prior_weight) as an operator. x: (R, d); weight: (R,) ≥ 0."""
    is_used = weight > 0
    rows, factors = x[is_used], weight[is_used].unsqueeze(-1)
    total = float(weight.sum()) + prior_weight
    return lambda v: (rows.T @ (factors * (rows @ v)) + prior_weight * prior(v)) / total


def low_rank(error: Tensor, moment: Operator, rank: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rank-r matrix ``up @ down`` that minimises ``tr((E - up down) M (E - up down)ᵀ)``, M the moment.

    error: (out, d) float32; returns up (out, r) with orthonormal columns and down (r, d), r = min(rank, out, d).

    Step 4 of method.md with M = S Sᵀ: up spans the leading left singular vectors U of E S, and ``Σ Vᵀ S⁻¹ = Uᵀ E``, so
    neither S nor its inverse is needed. U comes from randomised subspace iteration (Halko, Martinsson, Tropp 2011,
    section 4.5) with ``E M Eᵀ``, which is never formed either. Because up is orthonormal and down = upᵀ E, the error
    that remains on an input x is ``||E x||² - ||down x||²``.
    """
    out, d = error.shape
    width = min(rank + OVERSAMPLING, out, d)
    probes = torch.randn(d, width, generator=source, dtype=torch.float32).to(error.device)
    up = leading_directions(lambda v: error @ moment(error.T @ v), error @ moment(probes), min(rank, width), ITERATIONS)
    return up, up.T @ error


def leading_directions(apply: Operator, start: Tensor, rank: int, iterations: int) -> Tensor:
    """Orthonormal (m, rank) columns that span the leading eigenvectors of a symmetric positive operator, largest first.

    start: (m, l), l ≥ rank columns, best with ``apply`` behind them once.
    """
    basis = torch.linalg.qr(start).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(apply(basis)).Q
    small = (basis.T @ apply(basis)).double()
    _, vectors = torch.linalg.eigh((small + small.T) / 2)
    leading: Tensor = basis @ vectors[:, -rank:].flip(-1).to(basis.dtype)
    return leading


def cholesky(name: str, second_moment: Tensor, tokens: float, damping: float) -> Tensor:
    """Lower Cholesky factor of the damped moment, (d, d) in float64, or float32 for very wide groups.

    Raises NumericalFailure naming the group when it fails even with a hundred times the damping.
    """
    d = second_moment.shape[0]
    lower: Tensor
    matrix = second_moment.to(torch.float64 if d <= FLOAT64_WIDTH else torch.float32, copy=True).div_(tokens)
    diagonal = matrix.diagonal().clone()
    mean = float(diagonal.mean())
    for factor in (1, 10, 100):
        # A group whose inputs are all zero has no scale of its own; the identity is as good as any.
        matrix.diagonal().copy_(diagonal + (damping * factor * mean if mean > 0 else 1.0))
        lower, info = torch.linalg.cholesky_ex(matrix)
        if int(info) == 0 and bool(torch.isfinite(lower).all()):
            return lower
    raise NumericalFailure(
        f"input group {name}: the second moment of its inputs is not positive definite even with damping "
        f"{damping * 100:g}; raise `damping` or use more calibration samples"
    )
