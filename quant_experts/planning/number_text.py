"""Numbers as people read them: the same on every page, in every report and sentence, and on the command line."""

from __future__ import annotations

import math

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MISSING = "–"


def unit_of(size: float) -> tuple[int, str]:
    """The largest unit that ``size`` is at least one of, and its bytes."""
    power = next((power for power in range(len(UNITS) - 1, 0, -1) if size >= 1024**power), 0)
    return 1024**power, UNITS[power]


def size_text(size: int, digits: int = 3) -> str:
    """``1.86 GiB``; exact below a kibibyte."""
    factor, unit = unit_of(size)
    if factor == 1:
        return f"{size:,} B"
    value = size / factor
    return f"{value:.{digits}g} {unit}" if value < 999.5 or digits > 3 else f"{value:.0f} {unit}"


def number(value: float | None, digits: int = 3) -> str:
    """``0.0123``, ``4.2×10⁻⁶``, ``12,300``; an en dash for None and for what is not a number."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    significant = float(f"{value:.{digits}g}")
    exponent = math.floor(math.log10(abs(significant)))
    if -5 < exponent < 9:
        text = f"{significant:,.{max(0, digits - 1 - exponent)}f}"
        return text.replace("-", "−")
    mantissa = f"{significant / 10.0**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
    return f"{mantissa}×10{str(exponent).translate(SUPERSCRIPT)}".replace("-", "−", 1)


def percent(share: float | None) -> str:
    """A share as ``12.3 %``; from 99.5 % on with two decimals, cut and not rounded, so that only 1 is ``100 %``."""
    if share is not None and 0.995 <= share < 1:
        return f"{math.floor(10000 * share + 1e-6) / 100:.2f} %"
    return MISSING if share is None or math.isnan(share) else f"{number(100 * share)} %"
