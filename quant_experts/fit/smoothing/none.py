"""No smoothing."""

from __future__ import annotations

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.smoothing import Smoothing


def smooth(problem: GroupProblem) -> Smoothing:
    return Smoothing(None, "none")
