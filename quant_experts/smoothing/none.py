"""No smoothing."""

from __future__ import annotations

from quant_experts.problem import GroupProblem
from quant_experts.smoothing import Smoothing


def smooth(problem: GroupProblem) -> Smoothing:
    return Smoothing(None, "none")
