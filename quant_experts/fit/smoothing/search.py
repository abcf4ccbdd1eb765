"""Try several scalings, and the rotation, and take what has the smallest error, activation quantization included
(method.md, section 4, step 2)."""

from __future__ import annotations

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.smoothing import Smoothing, none, outlier, rotation
from quant_experts.fit.smoothing._trial import output_error, subsample
from quant_experts.fit.smoothing.smoothquant import with_alpha

ALPHAS = (0.25, 0.5, 0.75)


def smooth(problem: GroupProblem) -> Smoothing:
    """The candidate with the smallest ``||W x - W_q Q(x/s)||`` over a subsample of tokens, W_q rounded to nearest."""
    candidates = [none.smooth(problem), outlier.smooth(problem), *(with_alpha(problem, alpha) for alpha in ALPHAS)]
    if problem.spec.search_rotates:
        candidates.append(rotation.smooth(problem))
    x = problem.samples[subsample(problem, "smoothing search")]
    exact = x @ problem.weight.T
    errors = [
        float(output_error(problem, candidate.scale, x, exact, candidate.rotation).square().sum())
        for candidate in candidates
    ]
    return candidates[min(range(len(candidates)), key=errors.__getitem__)]
