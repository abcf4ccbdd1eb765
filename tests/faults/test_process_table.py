"""The witness of I2: who is taken for a runner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.faults.process_table import Running, runners
from tests.services import wait_until

FORKS = "import os, time; os.fork(); time.sleep(600)"


def test_a_child_that_a_runner_has_just_forked_is_no_second_runner_and_another_process_is(tmp_path: Path) -> None:
    job_file = tmp_path / "job_0a" / "a2" / "job.json"
    command = [sys.executable, "-c", FORKS, str(job_file)]
    first = subprocess.Popen(command, start_new_session=True)
    try:
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        wait_until(lambda: children.read_text().split(), what="the child")
        assert runners(tmp_path) == [Running(first.pid, "job_0a", 2)]
        second = subprocess.Popen(command, start_new_session=True)
        try:
            assert {each.pid for each in runners(tmp_path)} == {first.pid, second.pid}
        finally:
            os.killpg(second.pid, 9)
            second.wait()
    finally:
        os.killpg(first.pid, 9)
        first.wait()
