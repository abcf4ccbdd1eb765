"""Where a value falls in a drawing: linear and logarithmic axes with ticks that people would choose."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """From ``low`` at the coordinate ``start`` to ``high`` at ``end``; values beyond are held at the ends."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The coordinate, to a tenth of a pixel."""
        inside = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            share = (inside - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the axis, at most about ``most`` of them."""
        if not self.logarithmic:
            step = _round_up((self.high - self.low) / most)
            first = math.ceil(self.low / step - 1e-9)
            return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        low, high = math.log10(self.low), math.log10(self.high)
        decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        if len(decades) > most:
            return [10.0**power for power in decades[:: math.ceil(len(decades) / most)]]
        # Few decades: fill in the halves and thirds that engineers read, so that no axis has a single label.
        for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3)):
            every = [m * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for m in factors]
            inside = [value for value in every if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
            if len(inside) <= most + 1:
                return inside
        return [10.0**power for power in decades]


def logarithmic(values: Iterable[float], start: float, end: float, *, least: float = 1e-12) -> Axis:
    """An axis with room for all positive ``values``, its ends at 1, 2 or 5 times a power of ten."""
    positive = [value for value in values if value > least and math.isfinite(value)]
    low, high = _round_down(min(positive, default=1e-3)), _round_up(max(positive, default=1.0))
    if high / low < 4:
        low, high = _round_down(low / 2), _round_up(high * 1.5)
    return Axis(low, high, start, end, logarithmic=True)


def padded(values: Iterable[float], start: float, end: float) -> Axis:
    """A linear axis with a little room on both sides."""
    sizes = list(values)
    low, high = min(sizes, default=0.0), max(sizes, default=1.0)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - room, high + room, start, end)


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(m * power for m in (1, 2, 5) if m * power <= value * (1 + 1e-9))


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return min(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))
