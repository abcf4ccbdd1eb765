"""A run of the real library that is killed ends, on another worker, with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import BLOCKS, OPTIONS, add_real_dataset
from tests.services import wait_until
from tests.worker.conftest import Workshop
from worker.supervisor import RUNNER, Hands, attempt, work

SAFETENSORS = "SELECT name, sha256 FROM artifacts WHERE job_id = %s AND name LIKE '%%.safetensors' ORDER BY name"


def real(hands: Hands) -> Hands:
    return replace(hands, runner=RUNNER)


def digests(workshop: Workshop, job_id: str) -> list[dict[str, Any]]:
    found = workshop.rows(SAFETENSORS, job_id)
    assert found
    return found


def runner_of(directory: str) -> int | None:
    """Process id of the runner that works below ``directory``."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if words[:1] == [sys.executable] and any(word.startswith(directory) for word in words):
                return int(entry.name)
    return None


@pytest.mark.slow
def test_runs_killed_after_any_block_end_with_the_bytes_of_an_undisturbed_one(foundry: Workshop) -> None:
    dataset = add_real_dataset(foundry)
    reference = foundry.add_job(model="local/small", dataset=dataset, options=OPTIONS)
    work(real(foundry.hands("reference")))
    assert foundry.job(reference)["status"] == "succeeded", foundry.job(reference)["error"]

    killed = foundry.add_job(model="local/small", dataset=dataset, options=OPTIONS)
    for done in range(1, BLOCKS):
        hands = real(foundry.hands(f"doomed-{done}"))
        doomed = threading.Thread(target=attempt, args=(hands, foundry.claim(hands.worker)))
        doomed.start()
        wait_until(lambda done=done: foundry.job(killed)["blocks_done"] >= done, seconds=90, what=f"{done} blocks")
        pid = runner_of(str(foundry.settings.work_directory / killed))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        doomed.join(30)
        assert foundry.job(killed)["status"] == "queued", foundry.job(killed)["error"]
    assert work(real(foundry.hands("heir"))) == 1
    assert foundry.job(killed)["status"] == "succeeded", foundry.job(killed)["error"]
    assert digests(foundry, killed) == digests(foundry, reference)
    attempts = foundry.attempts(killed)
    assert [each["outcome"] for each in attempts] == ["runner_died"] * (BLOCKS - 1) + ["succeeded"]
    assert attempts[-1]["resumed_from_block"] >= BLOCKS - 1
