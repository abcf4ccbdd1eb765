"""What a storm among neighbours is judged by finds each fault, and that something was not tried at all."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.faults.neighbours import Seen, judged

GOOD = Seen(
    sick_stopped=5,
    old_attempts=9,
    stalled=2,
    deleted=Counter(webhook=9, dataset=2, job=2),
    claims={"default": 50, "loud": 60},
    messages=7,
)
FAULTS: dict[str, Seen] = {
    "N1": replace(GOOD, taken_when_stopped=1),
    "N1: the sick worker never": replace(GOOD, sick_stopped=0),
    "N2": replace(GOOD, newer_of_old=["job_1"]),
    "N2: the old worker took nothing": replace(GOOD, old_attempts=0),
    "N3": replace(GOOD, still_stalled=["attempt 1 at job_1"]),
    "N3: no runner": replace(GOOD, stalled=0),
    "N4": replace(GOOD, failed=["job_1 failed: internal"]),
    "N4: nothing was deleted of job": replace(GOOD, deleted=Counter(webhook=9, dataset=2)),
    "N5": replace(GOOD, claims={"default": 20, "loud": 60}),
    "N5: 50 claims of the quiet tenant, 0": replace(GOOD, claims={"default": 50}),
    "N6": replace(GOOD, at_once=["/7"]),
    "N6: no message": replace(GOOD, messages=0),
}


@pytest.mark.parametrize("says", FAULTS)
def test_each_is_found(says: str) -> None:
    assert judged(GOOD) == []
    assert [line for line in judged(FAULTS[says]) if line.startswith(says)]
