"""MBQ (Li et al., CVPR 2025): AWQ's grid under an objective that knows how much each modality's errors matter.

Vision tokens outnumber text tokens by far, and an error on one of them moves the model's loss less. The gradients that
say how much less are measured before the fit and arrive as ``problem.modality_weights``.
"""

from __future__ import annotations

from torch import Tensor

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.smoothing import Smoothing
from quant_experts.fit.smoothing._trial import best_alpha, output_error, subsample


def smooth(problem: GroupProblem) -> Smoothing:
    """The s = mean|x|^alpha, alpha in 0, 0.05 … 0.95, that leaves the smallest :func:`balanced_error`."""
    chosen = subsample(problem, "mbq")
    x, vision = problem.samples[chosen], problem.vision[chosen]
    exact = x @ problem.weight.T
    return best_alpha(problem, "mbq", lambda scale: balanced_error(problem, scale, x, exact, vision))


def balanced_error(problem: GroupProblem, scale: Tensor | None, x: Tensor, exact: Tensor, vision: Tensor) -> float:
    """Sum over modalities of weight · mean over its tokens of ``|W x - W_q Q(x/s)|`` (the paper's equation for MAE).

    x: (n, d); exact: (n, out), W x; vision: (n,) bool. A modality without tokens counts nothing; where all that
    count have weight 0, as without a gradient, all tokens count alike.
    """
    error = output_error(problem, scale, x, exact).abs().mean(-1)
    weights = problem.modality_weights
    parts = [(weights.vision, error[vision]), (weights.text, error[~vision])]
    present = [(weight, part) for weight, part in parts if len(part) and weight > 0]
    if not present:
        return float(error.mean())
    return sum(weight * float(part.mean()) for weight, part in present)
