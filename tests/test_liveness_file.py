"""Health checks without an interpreter: the age of a file that living processes touch."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from app.main import create_app
from core import liveness_file
from core.settings import Settings
from tests.services import wait_until
from worker.keeper import loop as keeper
from worker.queue.presence import present

CHECK = re.findall(r"^    (test .*)$", liveness_file.__doc__ or "", re.M)[0]


def healthy(file: Path) -> bool:
    environment = {"PATH": os.environ["PATH"], "QE_HEARTBEAT_FILE": str(file)}
    return subprocess.run(["sh", "-c", CHECK], env=environment, check=False, stderr=subprocess.DEVNULL).returncode == 0


def test_the_check_tells_a_fresh_file_from_an_old_and_a_missing_one_in_milliseconds(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    assert not healthy(file)
    liveness_file.touch(file)
    assert healthy(file)
    took = []
    for _ in range(10):
        began = time.perf_counter()
        healthy(file)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.1  # a Python that imports nothing takes 0.02, Celery's inspect 8 to 24 s
    os.utime(file, (time.time() - 61, time.time() - 61))
    assert not healthy(file)


async def test_the_apis_event_loop_touches_it_and_one_that_hangs_does_not(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness_file, "SECONDS", 0.01)
    file = tmp_path / "heartbeat"
    settings = Settings(home=tmp_path, database_url=database_url, heartbeat_file=file)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        while not file.exists():
            await asyncio.sleep(0.01)
        file.unlink()
        while not file.exists():
            await asyncio.sleep(0.01)
        file.unlink()
        time.sleep(0.1)
        assert not file.exists()


def test_the_keepers_rounds_touch_it_also_while_the_ledger_is_away(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    settings = Settings(
        home=tmp_path, database_url="postgresql://127.0.0.1:1/none", keeper_interval=0.01, heartbeat_file=file
    )
    stop = threading.Event()
    thread = threading.Thread(target=keeper.run_duties, args=(settings, lambda _: True, stop))
    thread.start()
    try:
        wait_until(file.exists, what="the first round")
        file.unlink()
        wait_until(file.exists, what="another round")
    finally:
        stop.set()
        thread.join(30)


def test_a_worker_touches_it_as_long_as_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness_file, "SECONDS", 0.01)
    file = tmp_path / "heartbeat"
    settings = Settings(home=tmp_path, database_url="postgresql://127.0.0.1:1/none", heartbeat_file=file)
    with present(settings, []):
        wait_until(file.exists, what="the first beat")
        file.unlink()
        wait_until(file.exists, what="another beat")
