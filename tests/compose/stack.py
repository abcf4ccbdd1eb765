"""One stack of the compose files under a project name of its own, and jobs in it over HTTP."""

from __future__ import annotations

import re
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant_experts.client import Client, Job
from tests.compose.engine import Engine, run
from worker.embedded.servers import free_port

MODEL = "local/tiny"
OPTIONS = {"group_size": 32, "shared_rank": 4, "routed_rank": 4, "experts": 2, "important_channels": 4, "samples": 8}
READY_SECONDS = 300.0
JOB_SECONDS = 900.0
# A killed worker is noticed after 23 s and not after two and a half minutes.
LEASE = {"QE_LEASE": "20", "QE_BEAT": "3", "QE_SELF_KILL": "12", "QE_GRACE": "3", "QE_RING_AGAIN": "10"}


class NotRun(Exception):
    """This machine lacks something; the message says what."""


@dataclass
class Stack:
    engine: Engine
    checkout: Path
    """Whose compose file, with its ``.env``."""
    directory: Path
    """Holds ``models/tiny`` and ``rows.jsonl``."""
    settings: dict[str, str] = field(default_factory=dict)
    """What ``.env`` says."""
    profiles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        made = {name: secrets.token_hex(32) for name in ("QE_API_KEY", "QE_SECRET")}
        # A password that has to be quoted in a URL.
        password = {"POSTGRES_PASSWORD": f"p@ss:w/rd#{secrets.token_hex(8)}"}
        where = {"QE_HOST": "127.0.0.1", "QE_PORT": str(free_port()), "QE_MODELS": str(self.directory / "models")}
        self.settings = {**made, **password, **where, **LEASE, **self.settings}

    @property
    def _file(self) -> Path:
        return self.checkout / "docker-compose.yml"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings['QE_PORT']}"

    def client(self) -> Client:
        return Client(self.url, api_key=self.settings["QE_API_KEY"])

    def compose(self, *arguments: str, check: bool = True, **other: str) -> str:
        """One Compose command; ``other``: settings that differ for it. Returns all that it said, its output last."""
        file = self.directory / "env"
        file.write_text("".join(f"{name}='{value}'\n" for name, value in {**self.settings, **other}.items()))
        base = ["--project-name", "qe-compose-test", "--project-directory", str(self.checkout), "--env-file", str(file)]
        base += ["--file", str(self._file), "--ansi", "never"]
        base += [word for profile in self.profiles for word in ("--profile", profile)]
        done = run(*self.engine.compose, *base, *arguments, check=check)
        return done.stderr + done.stdout

    def up(self, **other: str) -> float:
        """Seconds until it is ready."""
        began = time.monotonic()
        self.compose("up", "--detach", "--no-build", "--pull", "missing", **other)
        wait_until(self.ready, seconds=READY_SECONDS, what="readiness")
        return time.monotonic() - began

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def healthy(self) -> bool:
        states = self.compose("ps", "--format", "{{.Service}} {{.Health}}").splitlines()
        return len(states) >= 5 and all(line.endswith(" healthy") for line in states if not line.startswith("traces"))

    def has(self, service: str) -> bool:
        """Whether the image of this service is here, or can be pulled."""
        found = re.search(rf"^  {service}:\n(?:    .*\n)*?    image: (\S+)$", self._file.read_text(), re.M)
        assert found, service
        here = run(self.engine.command, "image", "inspect", found[1], check=False).returncode == 0
        return here or run(self.engine.command, "pull", "--quiet", found[1], check=False).returncode == 0

    def need(self, service: str) -> None:
        """Raises NotRun."""
        if not self.has(service):
            raise NotRun(f"the image of {service} is not to be had here")

    def down(self) -> None:
        """With its volumes."""
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "30", "--remove-orphans", check=False)

    def submit(self, client: Client, **more: Any) -> Job:
        """The same job every time, and nothing taken over from an earlier one."""
        rows = client.datasets.upload(self.directory / "rows.jsonl")
        return client.jobs.create(model=MODEL, calibration=rows, scheme="W4A6", options=OPTIONS, **more)


def digests(job: Job) -> dict[str, str]:
    """Of the checkpoint's tensors, as the service tells them."""
    return {each.name: each.sha256 for each in job.artifacts() if each.name.endswith(".safetensors")}


def pulled(job: Job, directory: Path) -> dict[str, str]:
    """Download everything; the client checks each file's digest. Returns ``digests``."""
    job.pull(directory)
    return digests(job)


def finished(client: Client, job: Job) -> Job:
    """Raises AssertionError when it did not succeed."""
    deadline = time.monotonic() + JOB_SECONDS
    for seconds in pauses():
        try:
            now = client.jobs.get(job.id)
        except Exception as error:
            now, trouble = None, error
        if now is not None and now.status in ("succeeded", "failed", "cancelled"):
            assert now.status == "succeeded", f"{now.id} is {now.status}: {now.error}"
            return now
        assert time.monotonic() < deadline, f"{job.id}: {now.status if now else trouble}"
        time.sleep(seconds)
    raise AssertionError


def in_the_middle(client: Client, job: Job) -> int:
    """Wait until a block is done and another one is not; returns the number of blocks that are done."""
    wait_until(lambda: (client.jobs.get(job.id).progress.blocks_done or 0) >= 1, seconds=JOB_SECONDS, what="a block")
    now = client.jobs.get(job.id)
    assert now.status == "running", f"{now.id} is {now.status} already: the model is too small for this test"
    return int(now.progress.blocks_done or 0)


def wait_until(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    for pause in pauses():
        if condition():
            return
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s"
        time.sleep(pause)


def pauses() -> Iterator[float]:
    while True:
        yield 0.25
