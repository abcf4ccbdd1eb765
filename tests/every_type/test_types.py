"""A type that went through the whole pipeline once still does. A third of them, another one every day."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from tests.every_type.__main__ import RESULTS
from tests.every_type.check import check
from tests.every_type.table import read_results
from tests.forked import ForkedProcesses

PARTS = 3


def of_today() -> list[tuple[str, str]]:
    """``QE_ALL_TYPES=1`` takes all."""
    passed = [each for each, outcome in read_results(RESULTS).items() if outcome.is_complete]
    return passed if os.environ.get("QE_ALL_TYPES") else passed[datetime.date.today().toordinal() % PARTS :: PARTS]


@pytest.mark.parametrize(("group", "kind"), of_today())
def test_a_type_that_passed_passes_again(group: str, kind: str, forked: ForkedProcesses, tmp_path: Path) -> None:
    outcome = check(group, kind, tmp_path, forked.ask)
    assert outcome.is_complete, outcome
