"""AWQ (Lin et al., MLSys 2024): salient channels are those with large inputs; how far to protect them is searched.

The grid and the objective are the paper's, the squared output error; here it is the input group's output and includes
activation quantization when the scheme has it. The paper's second search, clipping the range of each weight group, is
left out: the range belongs to the rounding slot, which is the same for all methods.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.smoothing import Smoothing
from quant_experts.fit.smoothing._trial import best_alpha, output_error, subsample


def smooth(problem: GroupProblem) -> Smoothing:
    """The s = mean|x|^alpha, alpha in 0, 0.05 … 0.95, that leaves the smallest ``squared_error``."""
    x = problem.samples[subsample(problem, "awq")]
    exact = x @ problem.weight.T
    return best_alpha(problem, "awq", lambda scale: squared_error(problem, scale, x, exact))


def squared_error(problem: GroupProblem, scale: Tensor | None, x: Tensor, exact: Tensor) -> float:
    """``||W x - W_q Q(x/s)||²`` over the tokens x: (n, d); exact: (n, out), W x."""
    return float(output_error(problem, scale, x, exact).square().sum(dtype=torch.float64))
