"""`qe serve`: everything comes up from nothing, and nothing is left of it, however it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from core.settings import Settings
from tests.services import ROOT, wait_until
from tests.worker.conftest import alive
from worker.embedded import serve as embedded
from worker.embedded.servers import EmbeddedPostgres, EmbeddedRedis, ServerFailed, free_port

START = 90.0


@dataclass
class Serving:
    process: subprocess.Popen[bytes]
    home: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        return (self.home.parent / "serve.log").read_text()

    def ready(self) -> bool:
        assert self.process.poll() is None, self.said()
        return "Ctrl-C stops everything" in self.said()

    def everyone(self) -> list[int]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [self.process.pid, *(child.pid for child in children)]

    def parts(self, word: str) -> list[psutil.Process]:
        """The children with ``word`` in their command lines."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if any(word in each for each in child.cmdline())]


@contextlib.contextmanager
def serving(directory: Path, *, wait: bool = True, **settings: str) -> Iterator[Serving]:
    port = int(settings.pop("QE_PORT", free_port()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QE_")}
    environment |= {"QE_HOME": str(directory / "home"), "QE_PORT": str(port), **settings}
    with (directory / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.embedded.serve"], env=environment, cwd=ROOT, stdout=log, stderr=log
        )
    serve = Serving(process, directory / "home", port)
    try:
        if wait:
            wait_until(serve.ready, seconds=START, what="the service")
        yield serve
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def two_free_ports() -> int:
    """The first of two in a row."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("", port)), socket.create_server(("", port + 1)):
            return port


def answers_metrics(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return "qe_worker_attempts_total" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return False


@pytest.mark.slow
def test_it_comes_up_from_nothing_stops_in_order_and_keeps_its_key(tmp_path: Path) -> None:
    with serving(tmp_path) as serve:
        assert httpx.get(f"{serve.url}/healthz").status_code == 200
        key = re.findall(r"API key: (qe_\S{32,})", serve.said())[0]
        kept = serve.home / "api_key"
        assert kept.read_text().strip() == key
        assert kept.stat().st_mode & 0o077 == 0
        authorized = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{serve.url}/v1/jobs", headers=authorized).status_code == 200
        everyone = serve.everyone()
        assert len(everyone) >= 6
        serve.process.send_signal(signal.SIGINT)
        assert serve.process.wait(60) == 0
        assert not any(map(alive, everyone))
    with serving(tmp_path) as again:
        assert key not in again.said()
        assert str(kept) in again.said()
        assert httpx.get(f"{again.url}/v1/jobs").status_code == 401
        assert httpx.get(f"{again.url}/v1/jobs", headers=authorized).status_code == 200


@pytest.mark.slow
def test_a_part_that_dies_is_started_again_and_kill_9_leaves_nobody(tmp_path: Path) -> None:
    with serving(tmp_path, QE_METRICS_PORT=str(metrics := two_free_ports())) as serve:
        wait_until(lambda: answers_metrics(metrics) and answers_metrics(metrics + 1), what="both metrics")
        (keeper,) = serve.parts("worker.keeper")
        keeper.kill()
        wait_until(lambda: "keeper was killed by SIGKILL; starting it again" in serve.said(), what="the restart")
        wait_until(
            lambda: [each for each in serve.parts("worker.keeper") if each.pid != keeper.pid], what="another keeper"
        )
        everyone = serve.everyone()
        assert {"postgres", "redis-server"} <= {psutil.Process(pid).name() for pid in everyone}
        serve.process.kill()
        serve.process.wait()
        wait_until(lambda: not any(map(alive, everyone)), seconds=20, what="the end of all processes")


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(tmp_path, wait=False, QE_PORT=str(port)) as serve:
            assert serve.process.wait(30) == 1
            assert serve.said().splitlines() == [
                f"Error: port {port} on 127.0.0.1 cannot be used (Address already in use): set QE_PORT or QE_HOST"
            ]


def test_a_home_in_use_is_one_clear_line(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "home").mkdir()
    with (tmp_path / "home" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with serving(tmp_path, wait=False) as serve:
            assert serve.process.wait(30) == 1
            assert len(serve.said().splitlines()) == 1
            assert "another `qe serve` uses" in serve.said()


@pytest.mark.parametrize(
    ("server", "line"), [("PostgreSQL", "FATAL:  data directory has wrong permissions"), ("Redis", "# Bad directive")]
)
def test_a_server_that_does_not_start_says_why(server: str, line: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"before\n{line}\nand why\n")
    dead = subprocess.Popen(["false"])
    dead.wait()
    made = {
        "PostgreSQL": EmbeddedPostgres(data=tmp_path, sockets=tmp_path, log=log, program=tmp_path, user=None),
        "Redis": EmbeddedRedis(port=free_port(), password="", log=log),
    }
    with pytest.raises(ServerFailed, match=rf"^{server} did not start: {line} and why \(log: {log}\)$"):
        made[server].wait(dead)


def test_a_key_that_was_not_written_to_the_end_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "api_key").touch()  # its maker was killed before it had written
    made, key = embedded._api_key(Settings(home=tmp_path), tmp_path)
    assert made
    assert len(key) > 32
    assert (tmp_path / "api_key").stat().st_mode & 0o777 == 0o600
    assert embedded._api_key(Settings(home=tmp_path), tmp_path) == (False, key)
    assert [path.name for path in tmp_path.iterdir()] == ["api_key"]
