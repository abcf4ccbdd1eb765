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
        one = [Running(first.pid, "job_0a", 2)]
        wait_until(lambda: runners(tmp_path) == one, what="the first runner, and no other")
        second = subprocess.Popen(command, start_new_session=True)
        try:
            both = {first.pid, second.pid}
            wait_until(lambda: {each.pid for each in runners(tmp_path)} == both, what="the second runner")
        finally:
            os.killpg(second.pid, 9)
            second.wait()
    finally:
        os.killpg(first.pid, 9)
        first.wait()
