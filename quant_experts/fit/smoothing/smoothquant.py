"""SmoothQuant (Xiao et al., ICML 2023, equation 4): part of the activations' range moves into the weights."""

from __future__ import annotations

import torch

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.smoothing import Smoothing, storable


def smooth(problem: GroupProblem) -> Smoothing:
    return with_alpha(problem, problem.spec.smoothquant_alpha)


def with_alpha(problem: GroupProblem, alpha: float) -> Smoothing:
    """s_c = max|x_c|^alpha / max|W_c|^(1 - alpha), with geometric mean 1, which changes nothing but keeps values in
    range.

    Channels that are zero in the activations or in the weights keep scale 1.
    """
    weight = problem.weight.abs().amax(0)
    alive = (problem.max_abs > 0) & (weight > 0)
    log_scale = alpha * problem.max_abs.clamp_min(1e-30).log() - (1 - alpha) * weight.clamp_min(1e-30).log()
    if bool(alive.any()):
        log_scale = log_scale - log_scale[alive].mean()
    scale = torch.where(alive, log_scale.clamp(-20, 20).exp(), torch.ones_like(log_scale))
    return Smoothing(storable(scale), f"smoothquant({alpha:g})")
