"""Children that cannot outlive us, know nothing they do not need, and may die at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import wait_until
from worker import process
from worker.runner import protocol


def test_a_word_to_a_dead_child_is_lost_without_a_sound(tmp_path: Path) -> None:
    child = process.start(["true"], environment={}, log=tmp_path / "log", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdout, child.stdin:  # closing would flush what was never taken
        process.reap(child)
        process.write_all(child.stdin, protocol.STOP)


def test_a_runner_knows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QE_API_KEY", "QE_DATABASE_URL", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    environment = process.scrubbed_environment(tmp_path)
    assert "secret" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_lines_come_whole_and_an_unfinished_last_one_is_dropped(tmp_path: Path) -> None:
    code = "import sys; sys.stdout.write('one\\ntwo\\nthr')"
    child = process.start([sys.executable, "-c", code], environment={}, log=tmp_path / "log", stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        assert [line for line in process.lines(child.stdout) if line is not None] == [b"one", b"two"]
    assert process.reap(child) == 0


def test_killing_the_group_ends_what_the_child_started(tmp_path: Path) -> None:
    child = process.start(
        ["sh", "-c", "sleep 600 & echo $!; wait"], environment={"PATH": os.environ["PATH"]}, log=tmp_path / "log",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    process.kill_group(child)
    assert process.describe_end(process.reap(child)) == "was killed by SIGKILL"
    wait_until(lambda: not _running(grandchild), what="the end of the grandchild")


@pytest.mark.parametrize(
    ("status", "said"),
    [(0, "ended with exit code 0"), (3, "ended with exit code 3"), (-signal.SIGTERM, "was killed by SIGTERM")],
)
def test_an_end_is_told_in_words(status: int, said: str) -> None:
    assert process.describe_end(status) == said


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
