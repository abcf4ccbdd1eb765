"""Bytes as people read them, in powers of 1024: the same on every page, in every sentence and on the command line."""

from __future__ import annotations

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def unit_of(size: float) -> tuple[int, str]:
    """The largest unit that ``size`` is at least one of, and its bytes."""
    power = next((power for power in range(len(UNITS) - 1, 0, -1) if size >= 1024**power), 0)
    return 1024**power, UNITS[power]


def said(size: int, digits: int = 3) -> str:
    """``1.86 GiB``; exact below a kibibyte."""
    factor, unit = unit_of(size)
    if factor == 1:
        return f"{size:,} B"
    value = size / factor
    return f"{value:.{digits}g} {unit}" if value < 999.5 or digits > 3 else f"{value:.0f} {unit}"
