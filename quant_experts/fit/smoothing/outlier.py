"""The published scaling: token-independent channels are brought down to the smallest of them (method.md, section 4,
step 2)."""

from __future__ import annotations

import torch

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.smoothing import Smoothing, storable


def smooth(problem: GroupProblem) -> Smoothing:
    """s_c = max(1, mean|x_c| / min over C_s of mean|x|) for c in C_s, 1 elsewhere."""
    channels = problem.partition.independent
    magnitude = problem.mean_abs[channels]
    scale = torch.ones_like(problem.mean_abs)
    if len(channels):
        # A channel in C_s was important at least once, so its mean is positive; the clamp is for denormal means.
        scale[channels] = (magnitude / magnitude.min().clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(1)
    return Smoothing(storable(scale), "outlier")
