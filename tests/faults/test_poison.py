"""Jobs that kill their runner each time, and kills for want of memory told from other kills."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.services import wait_until
from tests.worker.conftest import STANDIN, Workshop
from worker.machine import memory
from worker.supervisor.supervisor import work

MEMORY_CGROUP = Path("/sys/fs/cgroup/memory/qe-tests")


def test_a_poisonous_job_ends_by_its_budget_while_others_go_on(workshop: Workshop) -> None:
    dataset = workshop.add_dataset()
    poison = workshop.add_job(priority=1, calibration={"dataset": dataset, "split": "poison"})
    others = [workshop.add_job(dataset=dataset) for _ in range(3)]
    assert work(workshop.context()) == 3 + len(others)
    job = workshop.job(poison)
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "no_progress", 3)
    assert "3 attempts in a row ended without a new block" in job["error"]["message"]
    assert "SIGKILL" in job["error"]["message"]
    assert {workshop.job(job_id)["status"] for job_id in others} == {"succeeded"}
    assert [attempt["outcome"] for attempt in workshop.attempts(poison)] == ["runner_died"] * 3


def test_a_kill_for_want_of_memory_before_the_first_block_fails_at_once_with_advice(workshop: Workshop) -> None:
    counts = itertools.count()
    poison = workshop.add_job(calibration={"dataset": workshop.add_dataset(), "split": "poison"})
    assert work(replace(workshop.context(), oom_kills=lambda: next(counts))) == 1
    error = workshop.job(poison)["error"]
    assert (error["code"], error["retryable"]) == ("out_of_memory", True)
    assert "for want of memory" in error["message"]
    assert "options.samples" in error["message"]


def test_a_kill_for_want_of_memory_after_a_block_is_resumed(workshop: Workshop) -> None:
    counts = itertools.count()
    workshop.direct("crash-2")
    job_id = workshop.add_job()
    assert work(replace(workshop.context(), oom_kills=lambda: next(counts))) == 2
    assert workshop.job(job_id)["status"] == "succeeded"
    first = workshop.attempts(job_id)[0]
    assert (first["outcome"], first["blocks_done"]) == ("runner_died", 2)
    assert "for want of memory" in first["error"]["message"]


def test_the_kernel_would_take_the_runner_first(workshop: Workshop) -> None:
    workshop.direct("hold-1")
    workshop.add_job()
    with workshop.working(workshop.context()):
        workshop.wait_for("at-1")
        assert Path(f"/proc/{workshop.runner_pid()}/oom_score_adj").read_text().strip() == "1000"
    assert Path("/proc/self/oom_score_adj").read_text().strip() != "1000"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("low 0\nhigh 3\nmax 9\noom 2\noom_kill 2\noom_group_kill 1\n", 2),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1),
        ("nr_free_pages 1\noom_kill 0\n", 0),
        ("oom_kill_disable 0\nunder_oom 0\n", None),
    ],
)
def test_every_kind_of_counter_is_read(tmp_path: Path, text: str, count: int | None) -> None:
    (tmp_path / "events").write_text(text)
    assert memory.count_in(tmp_path / "events") == count
    assert memory.count_in(tmp_path / "absent") is None


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup of 64 MiB, where this machine lets us make one."""
    try:
        MEMORY_CGROUP.mkdir()
        (MEMORY_CGROUP / "memory.limit_in_bytes").write_text(str(64 << 20))
    except OSError:
        pytest.skip("no memory cgroup of our own on this machine")
    try:
        yield MEMORY_CGROUP
    finally:
        wait_until(lambda: not (MEMORY_CGROUP / "cgroup.procs").read_text(), what="the end of the cgroup's processes")
        MEMORY_CGROUP.rmdir()


def test_a_real_kill_by_the_kernel_ends_as_out_of_memory(workshop: Workshop, small_cgroup: Path) -> None:
    hog = workshop.stage / "hog.py"
    hog.write_text("import sys; kept = bytearray(1 << 30)\n")
    enter = ("sh", "-c", f'echo $$ > {small_cgroup}/cgroup.procs; exec "$@"', "sh", sys.executable)
    counter = small_cgroup / "memory.oom_control"
    hungry = replace(workshop.context(), runner=(*enter, str(hog)), oom_kills=lambda: memory.count_in(counter) or 0)
    job_id = workshop.add_job()
    assert work(hungry) == 1
    assert workshop.job(job_id)["error"]["code"] == "out_of_memory"
    modest = replace(hungry, runner=(*enter, str(STANDIN), str(workshop.stage)))
    other = workshop.add_job()
    work(modest)
    assert workshop.job(other)["status"] == "succeeded"


def test_this_machine_has_a_counter_that_only_grows() -> None:
    first = memory.oom_kills()
    assert 0 <= first <= memory.oom_kills()
    limit = memory.limit()
    assert limit is None or limit > 1 << 20
