"""The shared expert: one low-rank correction for every token (method.md, section 4, step 4)."""

from __future__ import annotations

from torch import Tensor

from quant_experts.fit.linear_algebra import damped_moment, low_rank
from quant_experts.fit.problem import GroupProblem
from quant_experts.seeding import generator


def fit_shared(problem: GroupProblem, error: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The rank-r correction of ``error`` (out, d) that leaves the smallest output error over all calibration tokens.

    Returns up (out, r) and down (r, d), float32.
    """
    moment = damped_moment(problem.second_moment, problem.tokens, problem.spec.damping)
    return low_rank(error, moment, rank, generator(problem.spec.seed, problem.name, "shared"))
