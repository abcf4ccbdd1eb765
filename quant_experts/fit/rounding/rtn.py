"""Round to nearest. Only the search for a grid uses calibration data."""

from __future__ import annotations

from torch import Tensor

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.rounding import Rounded
from quant_experts.fit.weight_grid import grid_of


def round_weights(problem: GroupProblem, exempt: Tensor) -> Rounded:
    weight = problem.weight.masked_fill(exempt, 0)
    grid = grid_of(problem, weight)
    return Rounded(grid.encode(weight), grid.scales)
