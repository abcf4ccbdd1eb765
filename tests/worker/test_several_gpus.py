"""A worker process owns all GPUs of its machine: one runner on each, each a worker of its own in the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from core.wakeup import RedisNotifier
from tests.services import wait_until
from tests.worker.conftest import Workshop, alive
from tests.worker.gpus import GPUS, fake_gpus
from tests.worker.test_celery_worker import celery_worker, ended, family
from worker.keeper import loop as keeper


def runners(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """Runners by the GPU that they see."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("standin.py" in word for word in child.cmdline()):
                found[child.environ()["CUDA_VISIBLE_DEVICES"]] = child
        except psutil.Error:  # it has just ended
            continue
    return found


def holders(workshop: Workshop) -> set[str]:
    return {row["worker"] for row in workshop.rows("SELECT worker FROM jobs WHERE lease_until IS NOT NULL")}


def test_each_free_gpu_takes_one_job_and_all_are_given_back_on_a_stop(
    workshop: Workshop, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus(tmp_path, monkeypatch)
    workshop.direct("hold-1")
    jobs = [workshop.add_job() for _ in range(4)]
    with celery_worker(workshop, redis_url, "host") as process:
        wait_until(lambda: set(runners(process)) == set(GPUS), what="a runner on each GPU")
        names = {"host@test/0", "host@test/1", "host@test/2"}
        assert holders(workshop) == names
        assert [workshop.job(job_id)["status"] for job_id in jobs] == ["running"] * 3 + ["queued"]
        wait_until(
            lambda: (
                {row["id"] for row in workshop.rows("SELECT id FROM workers WHERE device = 'NVIDIA H200'")} == names
            ),
            what="each in the ledger",
        )
        everyone = family(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not any(map(alive, everyone))
    assert [workshop.job(job_id)["status"] for job_id in jobs] == ["queued"] * 4
    assert workshop.rows("SELECT id FROM workers") == []


def test_a_supervisor_that_dies_costs_its_own_gpu_alone_and_the_next_has_that_gpu_again(
    workshop: Workshop, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus(tmp_path, monkeypatch)
    workshop.direct("hold-1")
    jobs = [workshop.add_job() for _ in range(3)]
    with celery_worker(workshop, redis_url, "host") as process:
        wait_until(lambda: set(runners(process)) == set(GPUS), what="a runner on each GPU")
        before = runners(process)
        os.kill(before[GPUS[1]].ppid(), signal.SIGKILL)
        wait_until(lambda: not alive(before[GPUS[1]].pid), seconds=5, what="the end of its runner")
        with workshop.connect() as connection:
            connection.execute(
                "UPDATE jobs SET lease_until = clock_timestamp() - interval '1 h' WHERE worker = 'host@test/1'"
            )
            (lost,) = keeper.reap(connection, RedisNotifier(redis_url).notify, grace=30, budget=3)
        wait_until(lambda: set(runners(process)) == set(GPUS), what="a runner on that GPU again")
        now = runners(process)
        assert {gpu: now[gpu].pid == before[gpu].pid for gpu in GPUS} == {GPUS[0]: True, GPUS[1]: False, GPUS[2]: True}
        assert workshop.job(lost)["worker"] == "host@test/1"
        workshop.release("hold-1")
        wait_until(lambda: all(ended(workshop, job_id) for job_id in jobs), what="the end of all jobs")
        everyone = family(process)
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(alive, everyone)), seconds=5, what="the end of all that it started")
    assert [workshop.job(job_id)["status"] for job_id in jobs] == ["succeeded"] * 3
