"""How certain the figures on held-out rows are."""

from __future__ import annotations

import pytest
import torch

from quant_experts.evaluation.next_token import standard_error

ROWS = torch.tensor([0.4, 0.1, 0.9, 0.6], dtype=torch.float64)


def test_rows_of_equal_length_give_the_textbook_standard_error() -> None:
    counts = torch.full((4,), 7.0, dtype=torch.float64)
    assert standard_error(ROWS * counts, counts) == pytest.approx(float(ROWS.std() / 4**0.5))


def test_rows_of_different_length_give_what_the_bootstrap_over_rows_gives() -> None:
    source = torch.Generator().manual_seed(0)
    counts = torch.randint(5, 40, (60,), generator=source).double()
    sums = counts * (0.3 + 0.1 * torch.randn(60, generator=source, dtype=torch.float64))
    drawn = torch.randint(60, (20_000, 60), generator=source)
    bootstrap = float((sums[drawn].sum(1) / counts[drawn].sum(1)).std())
    assert standard_error(sums, counts) == pytest.approx(bootstrap, rel=0.05)


def test_one_row_has_no_standard_error_and_an_empty_one_does_not_count() -> None:
    assert standard_error(ROWS[:1], torch.ones(1, dtype=torch.float64)) is None
    counts = torch.tensor([3.0, 3.0, 0.0], dtype=torch.float64)
    with_empty = standard_error(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64), counts)
    assert with_empty == standard_error(torch.tensor([1.0, 2.0], dtype=torch.float64), counts[:2])
