"""What a worker says of its machine."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.worker.conftest import Workshop
from worker import device, workers


def test_a_worker_knows_the_memory_and_cores_it_may_use() -> None:
    has = device.capacity()
    assert has.memory is not None
    assert 0 < has.memory <= psutil.virtual_memory().total
    assert has.cores


def test_a_containers_limit_counts_where_it_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "CGROUP_LIMITS", (tmp_path / "absent", limit))
    limit.write_text("1000000\n")
    assert device.capacity().memory == 1_000_000
    limit.write_text("max\n")
    assert device.capacity().memory == psutil.virtual_memory().total


def test_what_a_worker_has_is_in_the_ledger_and_its_device_with_the_attempt(workshop: Workshop) -> None:
    workshop.add_job()
    has = device.Capacity(memory=64, device_memory=None, cores=2)
    with workshop.connect() as connection:
        workers.seen(connection, worker="worker-1", host="here", device="cpu", has=has)
    row = workshop.rows("SELECT memory_bytes, device_memory_bytes, cores FROM workers")[0]
    assert row == {"memory_bytes": 64, "device_memory_bytes": None, "cores": 2}
    hold = workshop.claim().hold
    assert [attempt["device"] for attempt in workshop.attempts(hold.job_id)] == ["cpu"]
