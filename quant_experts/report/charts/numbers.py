"""Figures of the report: a unit, a sign, and as many digits as the figure needs."""

from __future__ import annotations

from quant_experts.planning.number_text import MISSING, number, percent, size_text

__all__ = [
    "MISSING",
    "bits",
    "change",
    "count",
    "decibel",
    "deviation",
    "number",
    "percent",
    "perplexity",
    "points",
    "size",
]


def change(value: float) -> str:
    """A relative change with its sign: ``+2.2 %``."""
    return percent(value) if value < 0 else f"+{percent(value)}"


def points(value: float) -> str:
    """The change of a share, in hundredths: ``−3.1 points``."""
    rounded = round(100 * value, 1) + 0.0  # no negative zero
    return f"{'+' if rounded > 0 else ''}{rounded:.1f} points".replace("-", "−")


def size(value: int) -> str:
    """Bytes as ``1.863 GiB``: four digits, because sizes are compared across a few percent."""
    return size_text(value, 4)


def perplexity(value: float | None) -> str:
    """Four digits: it is compared across a few percent."""
    return number(value, 4)


def deviation(value: float) -> str:
    """What stands after ±: two digits say enough."""
    return number(value, 2)


def count(value: int) -> str:
    return f"{value:,}"


def bits(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def decibel(value: float) -> str:
    return f"{value:.1f} dB".replace("-", "−")
