"""MBQ (Li et al., CVPR 2025): AWQ's grid under an objective that weighs the errors of both modalities.

Vision tokens far outnumber text tokens, and an error on one of them changes the model's loss less. Gradients measured
before the fit say how much less (``problem.modality_weights``).
"""

from __future__ import annotations

from torch import Tensor

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.smoothing import Smoothing
from quant_experts.fit.smoothing._trial import best_alpha, output_error, subsample


def smooth(problem: GroupProblem) -> Smoothing:
    """The s = mean|x|^alpha, alpha in 0, 0.05 … 0.95, that leaves the smallest ``balanced_error``."""
    sample = subsample(problem, "mbq")
    x, vision = problem.samples[sample], problem.vision[sample]
    exact = x @ problem.weight.T
    return best_alpha(problem, "mbq", lambda scale: balanced_error(problem, scale, x, exact, vision))


def balanced_error(problem: GroupProblem, scale: Tensor | None, x: Tensor, exact: Tensor, vision: Tensor) -> float:
    """Sum over modalities of weight · mean over its tokens of ``|W x - W_q Q(x/s)|`` (the paper's equation for MAE).

    x: (n, d); exact: (n, out), W x; vision: (n,) bool. A modality without tokens does not count. Where all
    weights are 0, as without a gradient, all tokens count alike.
    """
    error = output_error(problem, scale, x, exact).abs().mean(-1)
    weights = problem.modality_weights
    parts = [(weights.vision, error[vision]), (weights.text, error[~vision])]
    present = [(weight, part) for weight, part in parts if len(part) and weight > 0]
    if not present:
        return float(error.mean())
    return sum(weight * float(part.mean()) for weight, part in present)
