"""The embedded service as a child process, and the few HTTP calls that a client needs."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

START_SECONDS = 90
STOP_SECONDS = 60


@dataclass(frozen=True)
class Service:
    """A running service and a key for it."""

    url: str
    client: httpx.Client

    def upload(self, rows: Path) -> dict[str, Any]:
        with rows.open("rb") as file:
            return _json(self.client.post("/v1/datasets", files={"file": (rows.name, file, "application/jsonl")}))

    def submit(self, model: str, dataset: str, scheme: str, options: dict[str, Any], **more: Any) -> dict[str, Any]:
        """``more``: further fields of the body, such as ``method``."""
        body = {
            "model": {"id": model},
            "calibration": {"dataset": dataset},
            "scheme": scheme,
            "options": options,
            "name": "demo",
            **more,
        }
        return _json(self.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": str(uuid.uuid4())}))

    def job(self, job_id: str) -> dict[str, Any]:
        return _json(self.client.get(f"/v1/jobs/{job_id}"))

    def report(self, job_id: str) -> dict[str, Any]:
        return _json(self.client.get(f"/v1/jobs/{job_id}/report", headers={"Accept": "application/json"}))

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's events as they happen, to the last one; a dropped connection is taken up where it broke."""
        last, ended = "0", False
        while not ended:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
            with (
                contextlib.suppress(httpx.TransportError),
                self.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=None) as stream,
            ):
                if stream.status_code != 200:
                    stream.read()
                    _json(stream)
                for line in stream.iter_lines():
                    if line.startswith("data:"):
                        event = json.loads(line.removeprefix("data:"))
                        last = str(event["seq"])
                        ended = event["type"] in ("job.succeeded", "job.failed", "job.cancelled")
                        yield event

    def download(self, job_id: str, directory: Path) -> list[dict[str, Any]]:
        """Every artifact into ``directory``; returns the announced list."""
        artifacts: list[dict[str, Any]] = _json(self.client.get(f"/v1/jobs/{job_id}/artifacts"))["data"]
        for artifact in artifacts:
            target = directory / artifact["name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.client.stream("GET", f"/v1/jobs/{job_id}/artifacts/{quote(artifact['name'])}") as stream:
                if stream.status_code != 200:
                    stream.read()
                    _json(stream)
                with target.open("wb") as out:
                    for chunk in stream.iter_bytes():
                        out.write(chunk)
        return artifacts


@contextlib.contextmanager
def running_service(directory: Path) -> Iterator[Service]:
    """``qe serve`` on a free port with its data in ``directory``; stopped, with all it started, on the way out."""
    key, port = f"qe_{secrets.token_urlsafe(32)}", _free_port()
    environment = {
        **os.environ,
        "QE_HOME": str(directory / "home"),
        "QE_PORT": str(port),
        "QE_API_KEY": key,
        "QE_MODEL_ROOT": str(directory / "models"),
    }
    (directory / "models").mkdir(exist_ok=True)
    with (directory / "serve.log").open("wb") as log:
        serve = subprocess.Popen(
            [str(Path(sys.executable).with_name("qe")), "serve"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
                _wait_until_ready(client, serve, directory / "serve.log")
                yield Service(url, client)
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


def _json(response: httpx.Response) -> Any:
    if response.is_error:
        raise SystemExit(
            f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text}"
        )
    return response.json()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
