"""A worker that fails by its own fault: the job goes to another, and the worker stops before it has failed them all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.conftest import TENANT, Workshop
from worker.keeper import loop as keeper
from worker.ledger import attempts as ledger
from worker.ledger import claims, workers
from worker.machine.context import WorkerContext
from worker.machine.device import Device
from worker.machine.health import FIRST_PAUSE, Health, probe_device
from worker.metrics import REGISTRY
from worker.supervisor.supervisor import work

BROKEN = "device 0: cuMemAlloc: CUDA_ERROR_LAUNCH_FAILED (719)"


class Machine:
    """Its devices answer as it is told."""

    def __init__(self) -> None:
        self.driver: str | int = 1
        self.compute: str | int = 1
        self.now = 0.0

    def health(self) -> Health:
        return Health(
            probe=lambda kind, device: self.driver if kind == "driver" else self.compute, clock=lambda: self.now
        )


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield Machine()
    Health().record_success()


def crashing(workshop: Workshop, machine: Machine, worker: str = "sick") -> WorkerContext:
    """A worker each runner of which is killed at once, as by a driver that crashes."""
    context = workshop.context(worker)
    object.__setattr__(context, "health", machine.health())
    object.__setattr__(context, "runner", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    return context


def live(workshop: Workshop, *names: str) -> None:
    with workshop.connect() as connection:
        for name in names:
            workers.record_worker(connection, worker=name, host="h", device="cpu")


def worker_row(workshop: Workshop, name: str) -> tuple[str, str | None]:
    (row,) = workshop.rows("SELECT state, state_reason FROM workers WHERE id = %s", name)
    return row["state"], row["state_reason"]


def attempts_of(workshop: Workshop, worker: str) -> int:
    (row,) = workshop.rows("SELECT count(*) AS number FROM attempts WHERE worker = %s", worker)
    return int(row["number"])


def test_a_worker_whose_device_does_not_answer_takes_no_job_and_goes_on_when_it_does(
    workshop: Workshop, machine: Machine
) -> None:
    live(workshop, "w")
    job_id = workshop.add_job()
    context = workshop.context("w")
    object.__setattr__(context, "health", machine.health())
    object.__setattr__(context, "device", Device("NVIDIA H200", "GPU-0"))
    machine.driver = BROKEN
    assert work(context) == 0
    assert worker_row(workshop, "w") == ("stopped", BROKEN)
    assert REGISTRY.get_sample_value("qe_worker_stopped") == 1
    machine.driver = 1
    assert work(context) == 1
    assert workshop.job(job_id)["status"] == "succeeded"
    assert worker_row(workshop, "w") == ("ready", None)
    machine.driver = 0
    workshop.add_job()
    assert work(context) == 0
    assert worker_row(workshop, "w") == ("stopped", "NVIDIA H200 GPU-0 is gone")


def test_a_sick_worker_stops_after_three_jobs_and_the_others_are_left_for_its_neighbour(
    workshop: Workshop, machine: Machine
) -> None:
    machine.compute = BROKEN
    live(workshop, "sick", "well")
    jobs = [workshop.add_job() for _ in range(30)]
    assert work(crashing(workshop, machine)) == 3
    state, reason = worker_row(workshop, "sick")
    assert state == "stopped"
    assert reason is not None
    assert BROKEN in reason
    assert work(workshop.context("well")) == 30
    assert {workshop.job(job_id)["status"] for job_id in jobs} == {"succeeded"}


def test_alone_it_stops_as_well_and_no_job_has_failed(workshop: Workshop, machine: Machine) -> None:
    machine.compute = BROKEN
    jobs = [workshop.add_job() for _ in range(10)]
    workshop.settings = workshop.settings.model_copy(update={"retry_delay": 60})
    assert work(crashing(workshop, machine)) == 3
    assert {workshop.job(job_id)["status"] for job_id in jobs} == {"queued"}


def test_devices_that_compute_do_not_help_a_worker_whose_jobs_go_on_elsewhere(
    workshop: Workshop, machine: Machine
) -> None:
    live(workshop, "sick", "well")
    for _ in range(3):
        workshop.add_job()
    sick = crashing(workshop, machine)
    assert work(sick) == 3
    assert worker_row(workshop, "sick")[0] == "resting"
    assert work(workshop.context("well")) == 3
    machine.now += FIRST_PAUSE + 1
    workshop.add_job()
    assert work(sick) == 0
    assert worker_row(workshop, "sick")[0] == "stopped"


def test_jobs_of_one_tenant_that_kill_every_runner_do_not_take_the_worker_from_the_others(
    workshop: Workshop, machine: Machine
) -> None:
    live(workshop, "w")
    workshop.settings = workshop.settings.model_copy(update={"retry_delay": 60})
    poison = [workshop.add_job() for _ in range(5)]
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET tenant = 'hostile'")
        connection.execute("UPDATE datasets SET tenant = 'hostile'")
    context = crashing(workshop, machine, "w")
    assert work(context) == 3
    state, reason = worker_row(workshop, "w")
    assert (state, reason) == ("resting", "3 jobs failed here one after the other: jobs of hostile are left alone")
    good = workshop.add_job()
    object.__setattr__(context, "runner", workshop.context().runner)
    assert work(context) >= 1
    assert workshop.job(good)["tenant"] == TENANT
    assert workshop.job(good)["status"] == "succeeded"
    assert {workshop.job(job_id)["status"] for job_id in poison} <= {"queued", "succeeded"}


def test_a_job_does_not_go_back_to_the_worker_that_failed_it_while_another_lives(
    workshop: Workshop, machine: Machine
) -> None:
    live(workshop, "sick", "well")
    job_id = workshop.add_job()
    assert work(crashing(workshop, machine)) == 1
    with workshop.connect() as connection:
        assert claims.claim(connection, worker="sick", lease=30) is None
        connection.execute("UPDATE workers SET seen_at = seen_at - interval '1 h' WHERE id = 'well'")
        claim = claims.claim(connection, worker="sick", lease=30)
    assert claim is not None
    assert claim.ref.job_id == job_id


def test_a_new_block_makes_a_job_forget_who_failed_it(workshop: Workshop) -> None:
    live(workshop, "w", "other")
    workshop.direct("crash-1")
    job_id = workshop.add_job()
    assert work(workshop.context("w")) == 1
    assert workshop.job(job_id)["avoid"] == ["w"]
    workshop.direct("crash-2")
    assert work(workshop.context("other")) == 1
    assert workshop.job(job_id)["avoid"] == ["other"]
    assert work(workshop.context("w")) == 1
    assert workshop.job(job_id)["status"] == "succeeded"


def test_attempts_that_bring_nothing_wait_longer_each_time_and_then_notify(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    waits = []
    with workshop.connect() as connection:
        for _ in range(3):
            ref = workshop.claim().ref
            ledger.give_up_attempt(
                connection, ref, outcome=ledger.AttemptOutcome.RUNNER_DIED, reason="x", budget=9, delay=10
            )
            waits.append(workshop.events(job_id)[-1]["data"]["wait_seconds"])
            assert claims.claim(connection, worker="w", lease=30) is None
            assert keeper.notify_again(connection, workshop.notified.append, after=60) == []
            connection.execute("UPDATE jobs SET run_after = clock_timestamp(), queued_at = queued_at - interval '2 s'")
            assert keeper.notify_again(connection, workshop.notified.append, after=60) == [job_id]
    assert waits == [10, 20, 40]


@pytest.mark.parametrize("code", ["internal", "out_of_disk"])
def test_a_fault_of_the_worker_is_tried_elsewhere_before_it_fails_the_job(workshop: Workshop, code: str) -> None:
    (workshop.stage / "fail").write_text(f"{code} device-side assert triggered")
    live(workshop, "w1", "w2", "w3")
    job_id = workshop.add_job()
    for number in (1, 2, 3):
        assert work(workshop.context(f"w{number}")) == 1
    job = workshop.job(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", code)
    assert [attempt["worker"] for attempt in workshop.attempts(job_id)] == ["w1", "w2", "w3"]


def test_the_probe_asks_real_devices_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(probe_device("driver"), int)
    assert isinstance(probe_device("compute"), int)
    (tmp_path / "torch.py").write_text("raise RuntimeError('libcudart.so: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe_device("compute") == "libcudart.so: cannot open shared object file"


def test_a_probe_that_hangs_or_dies_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run

    def run(command: list[str], **options: object) -> object:
        return real([sys.executable, "-c", replaced], **options)  # type: ignore[call-overload]

    monkeypatch.setattr("worker.machine.health.subprocess.run", run)
    monkeypatch.setattr("worker.machine.health.PROBE_SECONDS", 1.0)
    replaced = "import os; os.kill(os.getpid(), 9)"
    assert probe_device("driver") == "the probe ended with -9"
    replaced = "import time; time.sleep(30)"
    assert probe_device("driver") == "the devices do not answer within 1 seconds"
