"""Crash points do nothing until a directory is named, and then exactly what its signs say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core import crash_points

REACH = "from core.crash_points import reach; reach('end.before_commit'); reach('end.before_commit'); print('on')"


def run(signs: Path | None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    environment.pop(crash_points.VARIABLE, None)
    if signs is not None:
        environment[crash_points.VARIABLE] = str(signs)
    return subprocess.run([sys.executable, "-c", REACH], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("passes", "status"), [("", -signal.SIGKILL), ("2", -signal.SIGKILL), ("3", 0)])
def test_a_sign_kills_the_process_that_reaches_the_point_the_nth_time_and_once(
    tmp_path: Path, passes: str, status: int
) -> None:
    sign = tmp_path / "kill-end.before_commit"
    sign.write_text(passes)
    assert run(tmp_path).returncode == status
    assert sign.exists() == (status == 0)
    assert (tmp_path / "reached-end.before_commit").exists()


def test_without_the_variable_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / "kill-end.before_commit").touch()
    assert run(None).stdout == "on\n"


def test_a_name_that_is_not_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(crash_points.VARIABLE, str(tmp_path))
    with pytest.raises(AssertionError, match="not listed"):
        crash_points.reach("somewhere")
