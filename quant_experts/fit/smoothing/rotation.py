"""Spread outliers over all channels by a random rotation, after a mild scale (docs/method.md, section 4, step 2).

Behind a rotation every channel of a token has about the magnitude ``|x / s| / sqrt(d)``, and the error of the rounded
activations on the outputs is in proportion to ``|x / s|² |W diag(s)|²``. By the Cauchy-Schwarz inequality that product
is smallest for ``s_c = sqrt(a_c / b_c)``, a_c and b_c the root mean squares of x_c and of W[:, c]. The error of GPTQ's
weights does not fall with it: where activations have more bits and count less, a smaller exponent is better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.rotation import random_signs, rotation_of
from quant_experts.fit.smoothing import Smoothing, storable

FEW_BITS = 5
EXPONENT, EXPONENT_FOR_FEW_BITS = 0.25, 0.5
"""Of ``a_c / b_c``, measured on a real model (benchmarks/results/real_rotation.md)."""


def smooth(problem: GroupProblem) -> Smoothing:
    bits = problem.spec.bits.activation_bits
    exponent = EXPONENT_FOR_FEW_BITS if bits <= FEW_BITS else EXPONENT
    signs = random_signs(problem.spec.seed, problem.name, problem.width).to(problem.weight.device)
    return Smoothing(signs * _scale(problem, exponent), f"rotation({exponent:g})", rotation_of(problem.width, bits))


def _scale(problem: GroupProblem, exponent: float) -> Tensor:
    """(a_c / b_c)^exponent with geometric mean 1; 1 for channels that are zero in the inputs or in the weights."""
    inputs = (problem.second_moment.diagonal() / problem.tokens).sqrt()
    weights = problem.weight.square().mean(0).sqrt()
    alive = (inputs > 0) & (weights > 0)
    log_scale = exponent * (inputs.clamp_min(1e-30).log() - weights.clamp_min(1e-30).log())
    if bool(alive.any()):
        log_scale = log_scale - log_scale[alive].mean()
    return storable(torch.where(alive, log_scale.clamp(-20, 20).exp(), torch.ones_like(log_scale)))
