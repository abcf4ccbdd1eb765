"""Size against KL: an axis of sizes, and the staircase through what nothing beats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quant_experts.charts.axes import Axis, padded
from quant_experts.planning.number_text import unit_of


@dataclass(frozen=True)
class SizeAxis:
    """An axis of bytes with round sizes in the unit of the largest as its ticks."""

    axis: Axis
    factor: int
    unit: str

    @classmethod
    def of(cls, sizes: Sequence[float], start: float, end: float) -> SizeAxis:
        factor, unit = unit_of(max(sizes))
        return cls(padded([size / factor for size in sizes], start, end), factor, unit)

    def at(self, size: float) -> float:
        return self.axis.at(size / self.factor)

    def ticks(self) -> list[tuple[float, str]]:
        """[(coordinate, label)], all with the same number of decimals."""
        values = self.axis.ticks()
        step = min((after - before for before, after in itertools.pairwise(values)), default=1.0)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(self.axis.at(value), f"{value:,.{decimals}f} {self.unit}") for value in values]


def staircase(best: Iterable[tuple[float, float]]) -> str:
    """Points of an SVG polyline through the marks ``best``."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted(best):
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return " ".join(f"{x},{y}" for x, y in corners)
