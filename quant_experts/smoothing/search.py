"""Try several scalings and keep the one that hurts least, activation quantization included (method.md, section 4,
step 2)."""

from __future__ import annotations

import torch

from quant_experts.problem import GroupProblem
from quant_experts.quantizer import dequantize, fake_quantize_tokens, quantize
from quant_experts.seeding import generator
from quant_experts.smoothing import Smoothing, none, outlier
from quant_experts.smoothing.smoothquant import with_alpha

ALPHAS = (0.25, 0.5, 0.75)
SUBSAMPLE = 512


def smooth(problem: GroupProblem) -> Smoothing:
    """The candidate with the smallest ``||W x - W_q Q(x/s)||`` over a subsample of tokens, W_q rounded to nearest."""
    candidates = [none.smooth(problem), outlier.smooth(problem), *(with_alpha(problem, alpha) for alpha in ALPHAS)]
    source = generator(problem.spec.seed, problem.name, "smoothing search")
    chosen = torch.randperm(problem.samples.shape[0], generator=source)[:SUBSAMPLE].to(problem.samples.device)
    x = problem.samples[chosen]
    exact = x @ problem.weight.T
    errors = [_error(problem, candidate, x, exact) for candidate in candidates]
    return candidates[min(range(len(candidates)), key=errors.__getitem__)]


def _error(problem: GroupProblem, candidate: Smoothing, x: torch.Tensor, exact: torch.Tensor) -> float:
    bits = problem.spec.bits
    scale = candidate.scale if candidate.scale is not None else torch.ones_like(problem.mean_abs)
    codes, scales = quantize(problem.weight * scale, bits.weight_bits, problem.group_size, problem.scale_dtype)
    rounded = dequantize(codes, scales, problem.group_size)
    return float((exact - fake_quantize_tokens(x / scale, bits.activation_bits) @ rounded.T).square().sum())
