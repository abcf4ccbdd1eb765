"""The router: which routed expert a token goes to (method.md, section 4, step 7).

``R``: (N, d); a token goes to ``argmin_i (R |x|)_i`` with x the scaled, unquantized input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.fit.experts.routed import RoutedExperts

RIDGE = 0.01
"""Regularisation in units of the mean diagonal of the moment of |x|."""


def route(router: Tensor, x: Tensor) -> Tensor:
    """The expert of each token. router: (N, d); x: (T, d) scaled; returns (T,) int64."""
    return (x.abs() @ router.T).argmin(-1)


def norm_router(error: Tensor, experts: RoutedExperts) -> Tensor:
    """R[i, c] = ||(E_S - up_i down_i)[:, c]||, the published start. error: (out, d); returns (N, d)."""
    before = error.square().sum(0)
    return (before - experts.down.square().sum(1)).clamp_min(0).sqrt()


def ridge_router(x: Tensor, norms: Tensor, start: Tensor) -> Tensor:
    """Closed form: ridge regression from |x| to each expert's residual norm, centred over experts, shrunk towards
    ``start``.

    x: (T, d) scaled reservoir tokens; norms: (T, N) residual norms; start: (N, d), the norm router; returns (N, d)
    float32. Solved in float64, in the smaller of the two forms, (d, d) or (T, T).
    """
    features = x.abs().double()
    centred = (norms - norms.mean(-1, keepdim=True)).double()
    prior = (start - start.mean(0, keepdim=True)).double()
    target = centred - features @ prior.T
    tokens, d = features.shape
    ridge = RIDGE * float(features.square().sum()) / d
    if ridge == 0:
        return start
    change: Tensor
    if d <= tokens:
        gram = features.T @ features
        gram.diagonal().add_(ridge)
        change = torch.linalg.solve(gram, features.T @ target)
    else:
        kernel = features @ features.T
        kernel.diagonal().add_(ridge)
        change = features.T @ torch.linalg.solve(kernel, target)
    return torch.add(prior, change.T).float()


def random_router(x: Tensor, experts: int, source: torch.Generator) -> Tensor:
    """Ablation: scores that depend on the token but not on the experts. Orthogonal to the mean of |x|, so that no
    expert wins for nearly every token; x: (T, d); returns (N, d)."""
    mean = x.abs().mean(0)
    scores = torch.randn(experts, x.shape[1], generator=source).to(x.device) / mean.clamp_min(1e-12).sqrt()
    return scores - (scores @ mean).unsqueeze(-1) * mean / mean.square().sum().clamp_min(1e-30)


def normalised(router: Tensor) -> Tensor:
    """The same decisions with the largest magnitude 1, so that every float dtype stores it. Scores minus their mean
    over experts choose the same expert and lose less to rounding."""
    centred = router - router.mean(0, keepdim=True)
    largest = float(centred.abs().max())
    return centred / largest if largest > 0 else centred
