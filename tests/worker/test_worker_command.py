"""`qe worker`: a worker of a service that runs elsewhere; with `--once` for machines that are made for one job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points

from core.wakeup import RedisNotifier
from tests.services import ROOT, wait_until
from tests.worker.conftest import STANDIN, Workshop, alive
from tests.worker.test_celery_worker import ended, family
from worker.queue.command import worker

ONCE = [sys.executable, "-m", "worker.queue.command", "--once"]


def environment(workshop: Workshop, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "QE_HOME": str(workshop.settings.resolved_home),
        "QE_DATABASE_URL": workshop.settings.database_url or "",
        "QE_MODEL_ROOT": str(workshop.settings.model_root),
        "QE_REDIS_URL": "redis://127.0.0.1:1/0",
        **more,
    }


@contextlib.contextmanager
def started(command: list[str], workshop: Workshop, **more: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command,
        env=environment(workshop, **more),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_qe_finds_the_command() -> None:
    found = [entry.value for entry in entry_points(group="quant_experts.commands", name="worker")]
    assert found == [f"{worker.callback.__module__}:worker"]


def test_without_a_job_it_says_so_and_ends_well(workshop: Workshop) -> None:
    done = subprocess.run(ONCE, env=environment(workshop), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "no job waits\n"), done.stderr


def test_once_takes_one_job_of_two_and_needs_no_broker(workshop: Workshop) -> None:
    jobs = [workshop.add_job(model="local/absent") for _ in range(2)]
    with started([*ONCE, "--name", "spot"], workshop) as process:
        assert process.wait(60) == 0
    first, second = map(workshop.job, jobs)
    assert (first["status"], first["worker"], first["error"]["code"]) == ("failed", "spot", "model_not_found")
    assert (second["status"], second["attempt"]) == ("queued", 0)
    assert workshop.rows("SELECT id FROM workers") == []


def test_a_stopped_one_gives_its_job_back(workshop: Workshop) -> None:
    workshop.direct("hold-1")
    job_id = workshop.add_job()
    heartbeat = workshop.stage / "heartbeat"
    runner = (sys.executable, str(STANDIN), str(workshop.stage))
    code = f"from worker.queue.once import work_once; print(work_once('spot', runner={runner!r}))"
    with started([sys.executable, "-c", code], workshop, QE_HEARTBEAT_FILE=str(heartbeat)) as process:
        workshop.wait_for("at-1")
        assert heartbeat.exists()
        wait_until(lambda: workshop.rows("SELECT id FROM workers") == [{"id": "spot"}], what="it in the ledger")
        everyone = family(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert process.stdout.read().splitlines()[-1] == "1"
        assert not any(map(alive, everyone))
    assert workshop.job(job_id)["status"] == "queued"
    assert [attempt["outcome"] for attempt in workshop.attempts(job_id)] == ["handed_back"]
    assert workshop.rows("SELECT id FROM workers") == []


def test_a_waiting_worker_hears_wake_ups_and_stops_when_asked(workshop: Workshop, redis_url: str) -> None:
    command = [sys.executable, "-m", "worker.queue.command", "--name", "plain@test"]
    with started(command, workshop, QE_REDIS_URL=redis_url, QE_BEAT="0.2") as process:
        assert process.stdout is not None
        assert any("ready." in line for line in process.stdout)
        job_id = workshop.add_job(model="local/absent")
        RedisNotifier(redis_url).notify(job_id)
        wait_until(lambda: ended(workshop, job_id), what="the job's end")
        assert workshop.job(job_id)["worker"] == "plain@test"
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(30) == 0
