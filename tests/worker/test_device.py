"""What a worker says of its machine."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.worker.conftest import Workshop
from tests.worker.gpus import GPUS, fake_gpus
from worker.embedded import serve as embedded
from worker.ledger import workers
from worker.machine import device


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
        workers.record_worker(connection, worker="worker-1", host="here", device="cpu", has=has)
    row = workshop.rows("SELECT memory_bytes, device_memory_bytes, cores FROM workers")[0]
    assert row == {"memory_bytes": 64, "device_memory_bytes": None, "cores": 2}
    ref = workshop.claim().ref
    assert [attempt["device"] for attempt in workshop.attempts(ref.job_id)] == ["cpu"]


def test_each_gpu_is_a_device_with_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(tmp_path, monkeypatch)
    assert [(each.name, each.uuid, each.memory) for each in device.devices()] == [
        ("NVIDIA H200", uuid, 143771 << 20) for uuid in GPUS
    ]
    assert device.capacity(device.devices()[0], sharing=3).device_memory == 143771 << 20


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("2,0", [GPUS[2], GPUS[0]]),
        (GPUS[1][:8], [GPUS[1]]),
        ("MIG-7,1", ["MIG-7", GPUS[1]]),
        ("", [None]),
        ("-1", [None]),
    ],
)
def test_cuda_visible_devices_chooses_among_them(
    wanted: str, found: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert [each.uuid for each in device.devices()] == found


def test_a_gpu_that_is_not_there_and_a_broken_driver_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake_gpus(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")  # of which CUDA would take the first and say nothing
    with pytest.raises(device.NoSuchDevice, match="names '3', and this machine has GPUs 0 to 2"):
        device.devices()
    program.write_text("#!/bin/sh\necho Unable to determine the device handle for GPU 0; exit 9\n")
    with pytest.raises(device.NoSuchDevice, match=r"Unable to determine the device handle.*CUDA_VISIBLE_DEVICES="):
        device.devices()


def test_runners_that_share_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    gpu = device.Device("NVIDIA H200", GPUS[0])
    assert device.visible(gpu, sharing=1) == {"CUDA_VISIBLE_DEVICES": GPUS[0]}
    assert device.visible(gpu, sharing=1000) == {"CUDA_VISIBLE_DEVICES": GPUS[0], "OMP_NUM_THREADS": "1"}
    assert device.visible(device.CPU, sharing=1) == {}


@pytest.mark.parametrize(
    ("workers_", "gpus"),
    [(1, [GPUS]), (2, [[GPUS[0], GPUS[2]], [GPUS[1]]]), (4, [[GPUS[0]], [GPUS[1]], [GPUS[2]], [GPUS[0]]])],
)
def test_the_workers_of_qe_serve_deal_the_gpus_out(
    workers_: int, gpus: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus(tmp_path, monkeypatch)
    assert embedded._gpus_by_worker(workers_) == [{"CUDA_VISIBLE_DEVICES": ",".join(hand)} for hand in gpus]
