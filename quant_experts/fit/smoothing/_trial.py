"""The parts of a search over scales: a subsample of tokens, a grid of scales, a layer rounded on trial."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.quantizer import round_tokens
from quant_experts.fit.rotation import Rotation
from quant_experts.fit.smoothing import Smoothing, storable
from quant_experts.fit.weight_grid import COARSE, grid_of
from quant_experts.forward.modeling_quant_experts import dequantize, rotate
from quant_experts.seeding import generator

SUBSAMPLE = 512
GRID = 20
"""Steps of AWQ's alpha, from 0 to 0.95, as in its authors' code."""


def subsample(problem: GroupProblem, purpose: str) -> Tensor:
    """Indices into the reservoir, (n,) int64, n ≤ SUBSAMPLE, drawn from (seed, group, purpose)."""
    source = generator(problem.spec.seed, problem.name, purpose)
    chosen = torch.randperm(problem.samples.shape[0], generator=source)[:SUBSAMPLE]
    return chosen.to(problem.samples.device)


def output_error(
    problem: GroupProblem, scale: Tensor | None, x: Tensor, exact: Tensor, rotation: Rotation | None = None
) -> Tensor:
    """``W x - W_q Q(x/s)`` with W diag(s) rounded to nearest, both rotated if there is a rotation. x: (n, d); exact:
    (n, out), W x; returns (n, out)."""
    weight, scaled = (problem.weight, x) if scale is None else (problem.weight * scale, x / scale)
    bits, clip = problem.spec.bits.activation_bits, None
    moment = problem.second_moment.diagonal()
    importance = moment if scale is None else moment / scale.square()
    if rotation is not None:
        weight, scaled, clip = rotate(weight, rotation.sizes), rotate(scaled, rotation.sizes), rotation.clip
        importance = torch.ones_like(importance)  # what a rotation makes of any moment, but for its off-diagonal
    grid = grid_of(problem, weight, importance, COARSE)
    rounded = dequantize(grid.encode(weight), grid.scales, torch.float32)
    return exact - round_tokens(scaled, bits, clip) @ rounded.T


def by_magnitude(problem: GroupProblem, alpha: float) -> Tensor | None:
    """s_c = mean|x_c|^alpha, divided by the geometric mean of its extremes (Lin et al., MLSys 2024, section 3.2).

    Channels whose inputs are all zero keep scale 1. None for alpha 0. Returns (d,) float32.
    """
    alive = problem.mean_abs > 0
    if alpha == 0 or not bool(alive.any()):
        return None
    log_scale = alpha * problem.mean_abs.clamp_min(torch.finfo(torch.float32).tiny).log()
    log_scale = log_scale - (log_scale[alive].max() + log_scale[alive].min()) / 2
    return storable(torch.where(alive, log_scale.exp(), torch.ones_like(log_scale)))


def best_alpha(problem: GroupProblem, label: str, loss: Callable[[Tensor | None], float]) -> Smoothing:
    """The scale of the grid with the smallest loss. Alpha 0 is tried first and wins ties: no scaling is in the grid."""
    alphas = [step / GRID for step in range(GRID)]
    scales = [by_magnitude(problem, alpha) for alpha in alphas]
    losses = [loss(scale) for scale in scales]
    best = min(range(GRID), key=losses.__getitem__)
    return Smoothing(scales[best], f"{label}({alphas[best]:g})")
