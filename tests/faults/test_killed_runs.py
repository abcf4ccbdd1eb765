"""A run of the real library that is killed ends, on another worker, with the bytes of an undisturbed one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import crash_points
from tests.faults.conftest import OPTIONS, add_real_dataset
from tests.worker.conftest import Workshop
from worker.machine.context import RUNNER, WorkerContext
from worker.supervisor.run_attempt import run_attempt
from worker.supervisor.supervisor import work

SAFETENSORS = "SELECT name, sha256 FROM artifacts WHERE job_id = %s AND name LIKE '%%.safetensors' ORDER BY name"


def real(context: WorkerContext) -> WorkerContext:
    return replace(context, runner=RUNNER)


def digests(workshop: Workshop, job_id: str) -> list[dict[str, Any]]:
    found = workshop.rows(SAFETENSORS, job_id)
    assert found
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_killed_at_crash_points_end_with_the_bytes_of_an_undisturbed_one_which_passes_them_all(
    foundry: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signs = tmp_path / "crash_points"
    signs.mkdir()
    monkeypatch.setenv(crash_points.VARIABLE, str(signs))
    dataset = add_real_dataset(foundry)
    reference = foundry.add_job(model="local/small", dataset=dataset, options=OPTIONS)
    work(real(foundry.context("reference")))
    assert foundry.job(reference)["status"] == "succeeded", foundry.job(reference)["error"]
    reached = {path.name.removeprefix("reached-") for path in signs.glob("reached-*")}
    assert crash_points.LIBRARY.keys() <= reached

    killed = foundry.add_job(model="local/small", dataset=dataset, options=OPTIONS)
    # Amid the second block, between the durable files of the third, and with the checkpoint done but not announced.
    for number, (point, passes) in enumerate([("tensors.synced", 5), ("block.written", 2), ("checkpoint.named", 1)]):
        (signs / f"kill-{point}").write_text(str(passes))
        context = real(foundry.context(f"doomed-{number}"))
        run_attempt(context, foundry.claim(context.worker))
        assert not (signs / f"kill-{point}").exists()
        assert foundry.job(killed)["status"] == "queued", foundry.job(killed)["error"]
    assert work(real(foundry.context("heir"))) == 1
    assert foundry.job(killed)["status"] == "succeeded", foundry.job(killed)["error"]
    assert digests(foundry, killed) == digests(foundry, reference)
    attempts = foundry.attempts(killed)
    assert [each["outcome"] for each in attempts] == ["runner_died"] * 3 + ["succeeded"]
    assert [each["resumed_from_block"] for each in attempts] == [0, 1, 2, 3]
