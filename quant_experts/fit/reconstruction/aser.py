"""ASER (Zhao et al., AAAI 2025): one low-rank adapter, the best in the norm that the inputs weigh (whitened SVD)."""

from __future__ import annotations

from torch import Tensor

from quant_experts.fit.experts.shared import fit_shared
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.reconstruction import Adapters, clamped_rank, no_columns

exempt_columns = no_columns


def reconstruct(problem: GroupProblem, base: Tensor) -> Adapters:
    rank, warnings = clamped_rank(problem, problem.ranks.shared, "shared_rank")
    up, down = fit_shared(problem, problem.weight - base, rank)
    return Adapters(shared_up=up, shared_down=down, warnings=warnings)
