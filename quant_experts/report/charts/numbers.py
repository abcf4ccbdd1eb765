"""Figures as people read them: three digits, a unit, and never 100 % for a share below 1."""

from __future__ import annotations

import math

from quant_experts.planning.units import said

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """``0.0123``, ``4.2×10⁻⁶``, ``12,300``; an en dash for None and for what is not a number."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    exponent = math.floor(math.log10(abs(rounded)))
    if -5 < exponent < 9:
        text = f"{rounded:,.{max(0, digits - 1 - exponent)}f}"
        return text.replace("-", "−")
    mantissa = f"{rounded / 10.0**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
    return f"{mantissa}×10{str(exponent).translate(SUPERSCRIPT)}".replace("-", "−", 1)


def percent(value: float | None) -> str:
    """A share as ``12.3 %``; from 99.5 % on with two decimals, cut and not rounded, so that only 1 is ``100 %``."""
    if value is not None and 0.995 <= value < 1:
        return f"{math.floor(10000 * value + 1e-6) / 100:.2f} %"
    return MISSING if value is None or math.isnan(value) else f"{number(100 * value)} %"


def change(value: float) -> str:
    """A relative change with its sign: ``+2.2 %``."""
    return percent(value) if value < 0 else f"+{percent(value)}"


def size(value: int) -> str:
    """Bytes as ``1.863 GiB``: four digits, because sizes are compared across a few percent."""
    return said(value, 4)


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
