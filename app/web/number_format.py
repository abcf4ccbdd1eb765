"""Numbers for people: three digits, and a power of ten instead of a row of zeros."""

from __future__ import annotations

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """``0.0123``, ``4.2×10⁻⁶``, ``12,300``. Negative zero is shown as 0."""
    text = f"{value + 0.0:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    if exponent and 0 < int(exponent) < 9:
        return f"{float(text):,.0f}"
    return f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPT)}" if exponent else mantissa


def percent(share: float, digits: int = 3) -> str:
    return f"{number(100 * share, digits)} %"
