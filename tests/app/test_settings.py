"""Settings that would be dangerous are refused when a process starts, in words that name them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from core.settings import Settings
from quant_experts.spec.limits import MOST_PIXELS

URLS = {"QE_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none", "QE_REDIS_URL": "redis://127.0.0.1:9/0"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"self_kill": 130},  # after the lease: two runners could compute at once
        {"self_kill": 120},
        {"beat": 90},  # a single late beat would kill a healthy runner
        {"lease": 60},
        {"beat": 100, "self_kill": 110, "lease": 105},
    ],
)
def test_a_self_kill_that_comes_too_late_or_too_early_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(wrong)
    (error,) = refused.value.errors()
    for name, value in {"beat": 20, "self_kill": 90, "lease": 120, **wrong}.items():
        assert f"QE_{name.upper()}={value:g}" in error["msg"]


@pytest.mark.parametrize("name", ["lease", "beat", "self_kill", "grace"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
def test_a_duration_that_is_none_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({name: value})
    assert [error["loc"] for error in refused.value.errors()] == [(name,)]


@pytest.mark.parametrize(
    ("name", "most"),
    [("max_image_pixels", MOST_PIXELS)] + [(f"max_{kind}_bytes", 64 << 20) for kind in ("image", "audio")],
)
def test_a_service_accepts_no_image_or_audio_that_its_runner_would_refuse(name: str, most: int) -> None:
    assert getattr(Settings.model_validate({name: most}), name) == most
    with pytest.raises(ValidationError, match=f"less than or equal to {most}"):
        Settings.model_validate({name: most + 1})


def test_other_leases_are_taken() -> None:
    assert Settings(beat=0.2, self_kill=1.4, lease=2.0, grace=0).lease == 2.0


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "uvicorn", "--factory", "app.main:create_app", "--port", "0"],
        ["-m", "celery", "--app", "worker.queue.celery_app:app", "worker"],
        ["-m", "worker.queue.command"],
        ["-m", "worker.queue.command", "--once"],
        ["-m", "worker.keeper"],
        ["-c", "from quant_experts.cli import main; main(['serve'])"],
    ],
    ids=["api", "celery", "worker", "worker once", "keeper", "qe serve"],
)
def test_no_process_starts_with_them_and_each_says_why_in_one_line(command: list[str]) -> None:
    environment = {**os.environ, **URLS, "QE_SELF_KILL": "130"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "QE_SELF_KILL=130" in line]
    assert len(said) == 1, done.stderr
    assert "QE_BEAT=20, QE_SELF_KILL=130 and QE_LEASE=120 must grow in this order" in said[0]
    assert "Traceback" not in done.stderr
