"""Ids say when a thing was made, and those of a process are in the order in which they were made."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.contract import ids


def test_ids_are_in_the_order_in_which_they_were_made_also_within_a_millisecond() -> None:
    made = [ids.new_id("job") for _ in range(20_000)]
    assert made == sorted(set(made))


def test_ids_of_several_threads_are_different_and_each_sees_its_own_in_order() -> None:
    with ThreadPoolExecutor(8) as pool:
        lists = list(pool.map(lambda _: [ids.uuid7() for _ in range(2000)], range(8)))
    assert all(each == sorted(each) for each in lists)
    assert len(set().union(*lists)) == 16_000


def test_a_clock_that_is_set_back_makes_no_earlier_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_clock", ids._Clock())
    first = ids.new_id("job")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    assert ids.new_id("job") > first


def test_an_id_is_a_uuid_of_version_7_that_tells_its_time() -> None:
    before = time.time()
    made = ids.uuid7()
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert before - 0.002 <= ids.made_at(f"job_{made.hex}") <= time.time() + 0.1
