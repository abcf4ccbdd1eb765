"""Sizes in the words of the service: powers of 1024, three digits, round numbers on an axis."""

from __future__ import annotations

import pytest

from quant_experts.charts.frontier import SizeAxis
from quant_experts.planning.number_text import UNITS, size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1,023 B"), (1024, "1 KiB"), (1_048_000, "1023 KiB"), (1_048_576, "1 MiB"),
        (1_023_000, "999 KiB"), (1_023_999, "1000 KiB"), (6_214_000_000, "5.79 GiB"), (2**60, "1048576 TiB"),
    ],
)  # fmt: skip
def test_a_size_is_said_in_three_digits(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (5e9, 9e9, ["5 GiB", "6 GiB", "7 GiB", "8 GiB"]),
        (1.05e6, 1.06e6, ["1.002 MiB", "1.004 MiB", "1.006 MiB", "1.008 MiB", "1.010 MiB"]),
        (900, 1100, ["0.90 KiB", "0.95 KiB", "1.00 KiB", "1.05 KiB"]),
    ],
)
def test_an_axis_has_round_sizes_where_they_are(low: float, high: float, labels: list[str]) -> None:
    axis = SizeAxis.of([low, high], 0.0, 880.0)

    ticks = axis.ticks()

    assert [label for _, label in ticks] == labels
    for x, label in ticks:
        number, unit = label.split()
        assert x == axis.at(float(number) * 1024 ** UNITS.index(unit))
