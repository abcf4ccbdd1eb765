"""The walls around a runner, on this machine, and a worker that starts or does not."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.confinement import Walls, landlock
from core.settings import Settings
from worker.runner import confinement, protocol

needs_landlock = pytest.mark.skipif(landlock.version() < 6, reason="this kernel has no Landlock, or an old one")


@pytest.fixture
def database() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://qe:password@127.0.0.1:{server.getsockname()[1]}/qe"


@needs_landlock
def test_every_attempt_is_refused(database: str) -> None:
    outcome = confinement.probe(Settings(database_url=database, runner_confinement="required"))
    assert "database" in outcome
    assert len(outcome) >= 8
    assert set(outcome.values()) == {"refused"}, outcome


def test_without_walls_the_attempts_come_through(database: str) -> None:
    """What the probe calls refused, the kernel refused: the same attempts without the walls."""
    program = (
        "import json, sys\nfrom worker.runner import confinement\nfrom core.confinement import Walls\n"
        "confinement.confine = lambda **_: Walls(False, False, False, False)\n"
        "sys.argv[1:] = [sys.argv[1]]\nconfinement.main()\n"
    )
    asked = confinement.asked_of(Settings(database_url=database), Path("/tmp"), Path(__file__))
    done = subprocess.run([sys.executable, "-c", program, asked], capture_output=True, text=True, check=True)
    assert "refused" not in done.stdout, done.stdout


def test_a_worker_that_requires_walls_does_not_start_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "probe", lambda settings: {"network": "came through"})
    with pytest.raises(SystemExit, match=r"network: came through.*best-effort"):
        confinement.check(Settings(runner_confinement="required"))
    confinement.check(Settings(runner_confinement="best-effort"))


def test_a_runner_that_requires_walls_computes_nothing_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.runner import job as runner

    monkeypatch.setattr(runner, "confine", lambda **_: Walls(True, False, True, False))
    job = protocol.RunnerJob(
        model=str(tmp_path), model_id="m", model_commit=None, calibration=str(tmp_path), split="train", output="o",
        work="w", scheme="W4A6", method="qe", options={}, confinement="required",
    )  # fmt: skip
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json())
    refused = runner._confined(path)
    assert isinstance(refused, confinement.NotConfined)
    assert "files, signals" in str(refused)
