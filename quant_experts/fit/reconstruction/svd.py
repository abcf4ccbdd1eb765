"""One low-rank adapter from the plain SVD of the weight error, which ignores the inputs."""

from __future__ import annotations

from torch import Tensor

from quant_experts.fit.linear_algebra import low_rank
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.reconstruction import Adapters, clamped_rank, no_columns
from quant_experts.seeding import generator

exempt_columns = no_columns


def reconstruct(problem: GroupProblem, base: Tensor) -> Adapters:
    rank, warnings = clamped_rank(problem, problem.ranks.shared, "shared_rank")
    source = generator(problem.spec.seed, problem.name, "shared")
    up, down = low_rank(problem.weight - base, lambda v: v, rank, source)
    return Adapters(shared_up=up, shared_down=down, warnings=warnings)
