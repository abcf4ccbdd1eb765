"""Bytes as people read them: in powers of 1024, on every page, in every drawing and every sentence of the service."""

from __future__ import annotations

import math

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def unit_of(size: float) -> tuple[int, str]:
    """The largest unit that ``size`` is at least one of, and its bytes."""
    power = next((power for power in range(len(UNITS) - 1, 0, -1) if size >= 1024**power), 0)
    return 1024**power, UNITS[power]


def said(size: int) -> str:
    """``1.86 GiB``; exact below a kibibyte."""
    factor, unit = unit_of(size)
    value = size / factor
    return f"{size:,} B" if factor == 1 else f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to six round sizes between the two, and what an axis calls them."""
    factor, unit = unit_of(high)
    low, high = low / factor, high / factor
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(multiple for multiple in (1, 2, 5, 10) if (high - low) / (step * multiple) <= 6)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [(number * step * factor, f"{number * step:,.{digits}f} {unit}") for number in numbers]
