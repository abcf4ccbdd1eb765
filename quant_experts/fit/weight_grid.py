"""The grid that the weights of an input group are rounded on: a scale per (row, group of channels), and a code range.

- ``max``: the weight of largest magnitude falls on the largest integer; codes are symmetric.
- ``searched``: scales are signed, so that the weight of largest magnitude falls on -2^(b-1), the one code without a
  counterpart; and they are shrunk by the factor that leaves the smallest weighted error (docs/method.md, section 4,
  step 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.quantizer import encode, largest_integer, weight_scales
from quant_experts.spec.specification import QuantizationSpec

SHRINKS = tuple(0.70 + 0.025 * step for step in range(19))
"""0.70 to 1.15. Beyond 1 the range is wider than the weights: 8/7 is the ``max`` grid of 4 bits."""
COARSE = SHRINKS[::4]
"""For a scale on trial: a coarse search ranks several scales as well as a fine one."""
CHUNK = 2**17
"""Weights searched together, so that the temporaries stay in a core's cache."""


@dataclass(frozen=True)
class WeightGrid:
    """``scales``: (out, d/g) float32, not zero, with values that the stored dtype represents exactly. Codes lie in
    [low, high]."""

    scales: Tensor
    low: int
    high: int
    group_size: int

    def encode(self, weight: Tensor) -> Tensor:
        """Round to nearest. weight: (out, d); returns (out, d) int8."""
        return encode(weight, self.scales, self.low, self.high, self.group_size)


def code_range(spec: QuantizationSpec) -> tuple[int, int]:
    """The lowest and the highest code of a weight."""
    high = largest_integer(spec.bits.weight_bits)
    return (-high if spec.weight_grid == "max" else -high - 1), high


def grid_of(
    problem: GroupProblem, weight: Tensor, importance: Tensor | None = None, shrinks: Sequence[float] = SHRINKS
) -> WeightGrid:
    """The grid for ``weight`` (out, d): the problem's with exempt columns zero, or W diag(s) for an s on trial.

    The searched grid weighs each weight's error by ``importance`` (d,), or by the diagonal of the problem's second
    moment.
    """
    bits, size, dtype = problem.spec.bits.weight_bits, problem.group_size, problem.scale_dtype
    low, high = code_range(problem.spec)
    if problem.spec.weight_grid == "max":
        return WeightGrid(weight_scales(weight, bits, size, dtype), low, high, size)
    if importance is None:
        importance = problem.second_moment.diagonal()
    scales = searched_scales(weight, bits, size, importance, dtype, shrinks=shrinks)
    return WeightGrid(scales, low, high, size)


def searched_scales(
    w: Tensor,
    bits: int,
    group_size: int,
    importance: Tensor,
    scale_dtype: torch.dtype = torch.float32,
    *,
    shrinks: Sequence[float] = SHRINKS,
) -> Tensor:
    """Signed scales that leave the smallest ``sum_c importance_c (w_c - q_c)²`` among the shrinks tried.

    w: (out, d) float; importance: (d,), not negative; returns (out, d/g) float32 with values that ``scale_dtype``
    represents exactly. A group of zeros gets scale 1. Raises ValueError when ``group_size`` does not divide d.
    """
    d = w.shape[1]
    if d % group_size:
        raise ValueError(f"group size {group_size} does not divide the input width {d}")
    factor = importance.float().reshape(d // group_size, group_size)
    # Channels that were zero for every token still count a little: their weights are stored, and tokens may come.
    factor = factor / factor.mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) + 1e-6
    rows = torch.split(w, max(1, CHUNK // d))
    return torch.cat(
        [_search(part.float().reshape(-1, *factor.shape), bits, factor, scale_dtype, shrinks) for part in rows]
    )


def _search(w: Tensor, bits: int, factor: Tensor, scale_dtype: torch.dtype, shrinks: Sequence[float]) -> Tensor:
    """w: (rows, groups, g); factor: (groups, g); returns (rows, groups)."""
    high = largest_integer(bits)
    low = -high - 1
    extreme = w.gather(-1, w.abs().argmax(-1, keepdim=True)).squeeze(-1) / low
    # Where no error is finite the unshrunk scale stands, and the caller sees when that one is not finite either.
    best, smallest = _stored(extreme, scale_dtype), torch.full_like(extreme, float("inf"))
    for shrink in shrinks:
        scale = _stored(extreme * shrink, scale_dtype)
        wide = scale.unsqueeze(-1)
        error = (w / wide).round_().clamp_(low, high).mul_(wide).sub_(w).square_().mul_(factor).sum(-1)
        best = torch.where(error < smallest, scale, best)
        smallest = torch.minimum(error, smallest)
    return best


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale as ``dtype`` holds it, in float32; 1 where that is 0."""
    stored = scale.to(dtype).float()
    return torch.where(stored != 0, stored, torch.ones_like(stored))
