"""Figures in the words of the service."""

from __future__ import annotations

import pytest

from quant_experts.planning import number_text as figures


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.02144, "0.0214"), (1.0, "1.00"), (0.00012, "0.000120"), (9.5e-06, "9.5×10⁻⁶"), (1e-12, "1×10⁻¹²"),
        (12_345, "12,300"), (1e9, "1×10⁹"), (-0.0, "0"), (-2e-7, "−2×10⁻⁷"),
    ],
)  # fmt: skip
def test_a_figure_has_three_digits_and_no_row_of_zeros(value: float, said: str) -> None:
    assert figures.number(value) == said


def test_a_share_is_said_in_percent() -> None:
    assert [figures.percent(share) for share in (0.962, 9.5e-8, 0)] == ["96.2 %", "9.5×10⁻⁶ %", "0 %"]
