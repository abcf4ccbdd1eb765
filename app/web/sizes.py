"""Round sizes for an axis, and sizes in words as the planner has them."""

from __future__ import annotations

import math

from quant_experts.planning.units import UNITS, said, unit_of

__all__ = ["UNITS", "said", "ticks"]


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to six round sizes between the two, and what an axis calls them."""
    factor, unit = unit_of(high)
    low, high = low / factor, high / factor
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(multiple for multiple in (1, 2, 5, 10) if (high - low) / (step * multiple) <= 6)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [(number * step * factor, f"{number * step:,.{digits}f} {unit}") for number in numbers]
