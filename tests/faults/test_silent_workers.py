"""A worker that is not heard of loses its job and nothing of it counts; without fence or self-kill, damage is found."""

from __future__ import annotations

import pytest

from tests.faults.silent_workers import cut_off, zombie

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_stopped_worker_that_wakes_is_fenced_and_nothing_of_it_counts() -> None:
    violations, attempts = zombie()
    assert violations == []
    assert [(a["worker"], a["outcome"]) for a in attempts] == [
        ("worker-1@faults", "lease_expired"),
        ("worker-2@faults", "succeeded"),
    ]


def test_without_the_fence_the_stopped_worker_does_damage_that_is_found() -> None:
    violations, _ = zombie(without="fence,self-kill")
    assert {violation.invariant for violation in violations} & {"I3", "I4", "I7"}, violations


def test_a_worker_behind_a_cut_cable_kills_its_runner_before_another_begins() -> None:
    violations, attempts = cut_off()
    assert violations == []
    assert [a["outcome"] for a in attempts] == ["lease_expired", "succeeded"]


def test_without_the_self_kill_two_runners_compute_at_once_and_are_found() -> None:
    violations, _ = cut_off(without="self-kill")
    assert [violation.invariant for violation in violations] == ["I2"]
