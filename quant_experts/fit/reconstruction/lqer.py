"""LQER (Zhang et al., ICML 2024): one low-rank adapter, the error weighed by each channel's mean magnitude only."""

from __future__ import annotations

from torch import Tensor

from quant_experts.fit.linear_algebra import low_rank
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.reconstruction import Adapters, clamped_rank, no_columns
from quant_experts.seeding import generator

exempt_columns = no_columns


def reconstruct(problem: GroupProblem, base: Tensor) -> Adapters:
    """The truncated SVD of E diag(mean|x|), undone on the right: the same solve with a diagonal moment mean|x|²."""
    rank, warnings = clamped_rank(problem, problem.ranks.shared, "shared_rank")
    diagonal = problem.mean_abs.square().unsqueeze(-1)
    source = generator(problem.spec.seed, problem.name, "shared")
    up, down = low_rank(problem.weight - base, lambda v: diagonal * v, rank, source)
    return Adapters(shared_up=up, shared_down=down, warnings=warnings)
