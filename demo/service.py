"""The embedded service as a child process, and what the demo and the tests ask of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from quant_experts.client import Client
from worker.embedded.servers import free_port
from worker.process import start

START_SECONDS = 90
STOP_SECONDS = 60


@dataclass(frozen=True)
class Service:
    """A running service, the client of ``quant_experts`` for it, and a bare HTTP client with the same key."""

    url: str
    api: Client
    client: httpx.Client

    def upload(self, rows: Path) -> dict[str, Any]:
        return self.api.datasets.upload(rows).model_dump(mode="json")

    def submit(self, model: str, dataset: str, scheme: str, options: dict[str, Any], **more: Any) -> dict[str, Any]:
        """``more``: further fields of the body, such as ``method``."""
        fields: dict[str, Any] = {"options": options, "name": "demo", **more}
        return self.api.jobs.create(model=model, calibration=dataset, scheme=scheme, **fields).model_dump(mode="json")

    def job(self, job_id: str) -> dict[str, Any]:
        return self.api.jobs.get(job_id).model_dump(mode="json")

    def report(self, job_id: str) -> dict[str, Any]:
        return self.api.jobs.get(job_id).report()

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's events as they happen, to the last one; a dropped connection is taken up where it broke."""
        return (event.model_dump(mode="json") for event in self.api.jobs.follow(job_id))

    def download(self, job_id: str, directory: Path) -> list[dict[str, Any]]:
        """Every artifact into ``directory``; returns the announced list."""
        job = self.api.jobs.get(job_id)
        artifacts = job.artifacts()
        if artifacts:
            job.pull(directory)
        return [artifact.model_dump(mode="json") for artifact in artifacts]


@contextlib.contextmanager
def running_service(directory: Path) -> Iterator[Service]:
    """``qe serve`` on a free port with its data in ``directory``; stopped, with all it started, on the way out."""
    key, port = f"qe_{secrets.token_urlsafe(32)}", free_port()
    environment = {
        **os.environ,
        "QE_HOME": str(directory / "home"),
        "QE_PORT": str(port),
        "QE_API_KEY": key,
        "QE_MODEL_ROOT": str(directory / "models"),
    }
    (directory / "models").mkdir(exist_ok=True)
    log = directory / "serve.log"
    serve = start(
        [str(Path(sys.executable).with_name("qe")), "serve"],
        environment=environment,
        log=log,
        # Also when this process is killed: it could not stop the service on its way out.
        at_parents_death=signal.SIGTERM,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client, Client(url, key) as api:
            _wait_until_ready(client, serve, log)
            yield Service(url, api, client)
    finally:
        serve.send_signal(signal.SIGINT)
        try:
            serve.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            serve.kill()
            serve.wait()


def _wait_until_ready(client: httpx.Client, serve: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if serve.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"the service did not start; the end of {log}:\n" + "\n".join(log.read_text().splitlines()[-15:]))
