"""Docker and Compose as commands, and whether they are here."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PYTHONS = ("3.12", "3.11", "3.13")
LEAST_COMPOSE = (2, 24)
BUILDX_SINCE = 23
"""From this version on the client builds with BuildKit through a plugin."""


class Absent(Exception):
    """There is no engine, or no Compose; the message says which."""


@dataclass(frozen=True)
class Engine:
    command: str
    """``docker``, or its path."""
    compose: tuple[str, ...]
    """The command, ``docker compose`` or a binary of that name."""
    described: str

    def docker(self, *arguments: str, check: bool = True) -> str:
        return run(self.command, *arguments, check=check).stdout

    def python(self) -> str:
        """The first of the versions that we support whose image is here already; else the newest, from a registry."""
        for version in PYTHONS:
            if run(self.command, "image", "inspect", f"python:{version}-slim", check=False).returncode == 0:
                return version
        return PYTHONS[0]

    def build(self, checkout: Path, target: str, tag: str, *, python: str) -> None:
        arguments = ["--build-arg", f"PYTHON={python}", "--target", target, "--tag", tag]
        arguments += shlex.split(os.environ.get("COMPOSE_TEST_BUILD", ""))
        run(self.command, "build", *arguments, str(checkout), environment={"DOCKER_BUILDKIT": "1"}, shown=True)

    def megabytes(self, image: str) -> float:
        return int(self.docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6


def find_engine() -> Engine:
    """Raises Absent."""
    docker, server = _docker()
    for compose in (os.environ.get("DOCKER_COMPOSE", ""), f"{docker} compose", "docker-compose"):
        if compose and (version := _version(tuple(shlex.split(compose)))):
            if tuple(map(int, version.split(".")[:2])) >= LEAST_COMPOSE:
                return Engine(docker, tuple(shlex.split(compose)), f"Docker {server}, Compose {version}")
            print(f"{compose} is {version}; 2.24 or newer is needed", file=sys.stderr)
    raise Absent("there is no Docker Compose of at least 2.24; DOCKER_COMPOSE may name its binary")


def _docker() -> tuple[str, str]:
    """The first ``docker`` that an engine answers and that builds with BuildKit, and the engine's version."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    reasons = ["there is no `docker` command"]
    for docker in [path for folder in folders if (path := shutil.which("docker", path=folder))]:
        server = run(docker, "info", "--format", "{{.ServerVersion}}", check=False)
        if server.returncode != 0 or not server.stdout.strip():
            reasons.append("no Docker engine answers")
            continue
        client = run(docker, "--version").stdout.split("version ")[1].split(".")[0]
        if int(client) >= BUILDX_SINCE and run(docker, "buildx", "version", check=False).returncode != 0:
            reasons.append(f"{docker} has no buildx, which it builds with")
            continue
        return docker, server.stdout.strip()
    raise Absent(reasons[-1])


def _version(compose: tuple[str, ...]) -> str | None:
    try:
        asked = run(*compose, "version", "--short", check=False)
    except OSError:
        return None
    return asked.stdout.strip().removeprefix("v") if asked.returncode == 0 and asked.stdout[:1].isalnum() else None


def run(
    *command: str,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
    shown: bool = False,
    directory: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """``shown``: what it says goes to stderr. Raises RuntimeError with what it said when it fails."""
    done = subprocess.run(
        command,
        stdout=sys.stderr if shown else subprocess.PIPE,
        stderr=None if shown else subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(environment or {})},
        cwd=directory,
        check=False,
    )
    if check and done.returncode != 0:
        raise RuntimeError(
            f"{shlex.join(command)} ended with {done.returncode}: {done.stderr or ''}{done.stdout or ''}"
        )
    return done
