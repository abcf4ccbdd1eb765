"""Round to nearest: no calibration data is looked at."""

from __future__ import annotations

from torch import Tensor

from quant_experts.problem import GroupProblem
from quant_experts.quantizer import quantize
from quant_experts.rounding import Rounded


def round_weights(problem: GroupProblem, exempt: Tensor) -> Rounded:
    weight = problem.weight.masked_fill(exempt, 0)
    return Rounded(*quantize(weight, problem.spec.bits.weight_bits, problem.group_size, problem.scale_dtype))
