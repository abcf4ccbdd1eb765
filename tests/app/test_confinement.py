"""A process behind the walls tries what an attacker would. Each attempt succeeds without them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.confinement import landlock

ATTEMPTS = """
import json, os, signal, socket, subprocess, sys
from pathlib import Path
from core.confinement import raise_walls

port, unix, secret, work, behind = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]
if behind == "walls":
    libraries = [Path("/usr"), Path("/lib"), Path("/lib64"), Path(sys.prefix), Path(sys.base_prefix)]
    walls = raise_walls(readable=[Path("/proc")], programs=libraries, writable=[work], may_start_programs=True)
    assert not walls.missing, walls
parent = os.getppid()
attempts = {
    "environment of the parent": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
    "open files of the parent": lambda: os.readlink(f"/proc/{parent}/fd/0"),
    "memory of the parent": lambda: open(f"/proc/{parent}/mem", "rb"),
    "signal to the parent": lambda: os.kill(parent, 0),
    "TCP": lambda: socket.create_connection(("127.0.0.1", port), 5),
    "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
    "Unix socket": lambda: socket.socket(socket.AF_UNIX).connect(unix),
    "file of others": lambda: secret.read_bytes(),
    "folder of others": lambda: os.listdir(secret.parent),
    "writing elsewhere": lambda: (secret.parent / "mine").write_text("x"),
    "program of its own": lambda: subprocess.run([work / "program"], check=True),
    "its child, TCP": lambda: subprocess.run(
        [sys.executable, "-c", f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"],
        check=True, stderr=subprocess.DEVNULL,
    ),
}
(work / "program").write_text("#!/bin/sh\\n")
(work / "program").chmod(0o755)
came = []
for name, attempt in attempts.items():
    try:
        attempt()
    except (OSError, subprocess.CalledProcessError):
        continue
    came.append(name)
(work / "own").write_text("still works")
print(json.dumps([came, list(attempts)]))
"""


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    unix = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(unix))
        local.listen()
        yield tcp.getsockname()[1], unix


def tried(listening: tuple[int, Path], tmp_path: Path, behind: str) -> tuple[list[str], list[str]]:
    secret, work = tmp_path / "others" / "secret", tmp_path / "work"
    secret.parent.mkdir()
    work.mkdir()
    secret.write_text("of another tenant")
    arguments = [str(listening[0]), str(listening[1]), str(secret), str(work), behind]
    done = subprocess.run([sys.executable, "-c", ATTEMPTS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    came, attempts = json.loads(done.stdout)
    return came, attempts


needs_landlock = pytest.mark.skipif(landlock.version() < 6, reason="this kernel has no Landlock, or an old one")


@needs_landlock
def test_nothing_comes_through(listening: tuple[int, Path], tmp_path: Path) -> None:
    came, _ = tried(listening, tmp_path, "walls")
    assert came == [], came


def test_without_walls_everything_does(listening: tuple[int, Path], tmp_path: Path) -> None:
    came, attempts = tried(listening, tmp_path, "nothing")
    assert came == attempts


@needs_landlock
@pytest.mark.skipif(os.getuid() != 0, reason="becomes nobody")
def test_the_walls_need_no_privilege(listening: tuple[int, Path], tmp_path: Path) -> None:
    """As in a container without capabilities."""
    program = (
        "import os\nfrom core.confinement import raise_walls\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\nassert not raise_walls().missing\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
