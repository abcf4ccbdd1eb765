"""``qe serve`` from the wheel, outside the checkout: a job, Ctrl-C, nothing left."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from pathlib import Path

import psutil
import pytest

from demo.model import make_qwen2_vl
from demo.rows import write_jsonl
from tests.services import wait_until
from tests.shipping.conftest import MakeEnvironment
from worker.embedded.servers import free_port

QE = ("-m", "quant_experts.cli")
KEY = "k" * 40


@pytest.mark.slow
def test_a_job_from_the_wheel_and_nothing_left(environment: MakeEnvironment, tmp_path: Path) -> None:
    installed = environment("app", "worker", "engine", "embedded", "client")
    make_qwen2_vl(tmp_path / "models" / "tiny", hidden=64, blocks=1, intermediate=96, vision_depth=1, vision_width=32)
    write_jsonl(tmp_path / "rows.jsonl", 8)
    port = free_port()
    variables = {"QE_HOME": str(tmp_path / "home"), "QE_API_KEY": KEY, "QE_MODEL_ROOT": str(tmp_path / "models")}
    with (tmp_path / "log").open("wb") as log:
        serve = subprocess.Popen(
            [installed.python, *QE, "serve", "--port", str(port)],
            cwd=tmp_path,
            env=installed.variables(**variables),
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: ready(serve, port, tmp_path / "log"), seconds=120, what="qe serve")
        everyone = [serve.pid, *(child.pid for child in psutil.Process(serve.pid).children(recursive=True))]
        options = ["--group-size", "32", "--experts", "2", "--shared-rank", "4", "--routed-rank", "4"]
        options += ["--samples", "8", "--important-channels", "4"]
        source = ["--model", "local/tiny", "--calibration", str(tmp_path / "rows.jsonl"), "--scheme", "W4A6"]
        address = {"QE_URL": f"http://127.0.0.1:{port}", "QE_API_KEY": KEY}
        done = installed.run(*QE, "submit", *source, *options, "--watch", "--json", **address)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["type"] == "job.succeeded"
        serve.send_signal(signal.SIGINT)
        assert serve.wait(60) == 0
        wait_until(lambda: not any(map(psutil.pid_exists, everyone)), seconds=10, what="the end of every process")
    finally:
        serve.kill()
        serve.wait()


def ready(serve: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    assert serve.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
