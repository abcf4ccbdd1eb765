"""The walls around the runner, and what comes through them on this machine.

    python -m worker.runner.confinement

prints the table of attempts that a worker makes when it starts: what a model that has taken over its runner would try.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from core import pooler
from core.confinement import Limits, Walls, raise_walls
from core.settings import Settings

logger = logging.getLogger(__name__)

SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin")
ABOUT_SYSTEM = (
    "/proc",  # what is another process's own is behind Landlock's wall between processes
    "/sys",
    *(
        f"/etc/{name}"
        for name in (
            "alternatives",
            "group",
            "host.conf",
            "hosts",
            "ld.so.cache",
            "ld.so.conf",
            "ld.so.conf.d",
            "localtime",
            "mime.types",
            "nsswitch.conf",
            "OpenCL",
            "passwd",
            "timezone",
        )
    ),
)
DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "dri", "kfd")
ATTEMPT_SECONDS = 60
CAME_THROUGH = "came through"
REFUSED = "refused"


def confine(*, directory: Path, read: Iterable[Path] = (), write: Iterable[Path] = ()) -> Walls:
    """Around this process: it writes in ``directory`` and ``write``, reads ``read`` and the programs of this machine,
    and no more."""
    # Found before the walls stand: beneath them Python cannot look through the directory that they lie in.
    packages = [Path(import_module(name).__path__[0]) for name in ("app", "quant_experts", "worker")]
    libraries = [each for each in os.environ.get("LD_LIBRARY_PATH", "").split(":") if each]
    return raise_walls(
        readable=[*map(Path, ABOUT_SYSTEM), *packages, *read],
        programs=map(Path, (*SYSTEM, sys.prefix, sys.base_prefix, *libraries)),
        writable=[directory, *write],
        devices=[path for name in DEVICES for path in Path("/dev").glob(name)],
        may_start_programs=True,  # the checkpoint is verified in a fresh process, and Triton compiles
        limits=Limits(),
    )


def with_linked(directory: Path) -> list[Path]:
    """A model's directory, and what its files link to: below a model root they may be those of a hub's cache."""
    targets = {path.resolve() for path in directory.iterdir() if path.is_symlink()} if directory.is_dir() else set()
    return [directory, *targets]


class NotConfined(Exception):
    """The walls do not stand, and QE_RUNNER_CONFINEMENT=required."""


def check(settings: Settings) -> None:
    """Try the walls when a worker starts, and say what stands. Raises SystemExit where all of them are required."""
    if settings.runner_confinement == "off":
        logger.warning("runners are not confined: QE_RUNNER_CONFINEMENT=off")
        return
    outcome = probe(settings)
    open_ones = [name for name, word in outcome.items() if word != REFUSED]
    words = ", ".join(f"{name}: {word}" for name, word in outcome.items())
    if not open_ones:
        logger.info("runners are confined (%s)", words)
        return
    if settings.runner_confinement == "required":
        raise SystemExit(
            f"runners cannot be confined here ({words}): Landlock (Linux 6.12 on) and seccomp are needed;"
            " QE_RUNNER_CONFINEMENT=best-effort takes what there is"
        )
    logger.warning("runners are not wholly confined (%s)", words)


def probe(settings: Settings) -> dict[str, str]:
    """Attempt → whether it came through, from a process behind the runner's walls."""
    from worker.process import scrubbed_environment

    with tempfile.TemporaryDirectory(prefix="qe-probe-") as scratch, tempfile.TemporaryDirectory() as others:
        (Path(others) / "rows").write_text("of another tenant")
        question = asked_of(settings, Path(scratch), Path(others) / "rows")
        answer = subprocess.run(  # noqa: S603 -- this interpreter, a program of ours
            [sys.executable, "-m", "worker.runner.confinement", question],
            env=scrubbed_environment(Path(scratch)),
            cwd=scratch,
            capture_output=True,
            timeout=ATTEMPT_SECONDS,
            check=False,
        )
    try:
        outcome = json.loads(answer.stdout)
    except ValueError:
        return {"the walls themselves": f"the process behind them failed: {answer.stderr.decode()[-300:]}"}
    return {str(name): str(word) for name, word in outcome.items()}


def asked_of(settings: Settings, directory: Path, others: Path) -> str:
    """What the process that tries has to know; it has no settings."""
    database = _address(settings.database_url)
    return json.dumps(
        {"directory": str(directory), "others": str(others), "home": str(Path.home()), "database": database}
    )


def _address(database_url: str | None) -> list[Any] | None:
    """Where PostgreSQL listens: a path, or host and port; never who may enter."""
    if database_url is None:
        return None
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(pooler.plain(database_url))
    host, port = str(parts.get("host") or "127.0.0.1"), int(parts.get("port") or 5432)
    return [f"{host}/.s.PGSQL.{port}"] if host.startswith("/") else [host, port]


def _attempt(question: Mapping[str, Any]) -> dict[str, str]:
    """Try from inside what the confinement forbids: which attempts succeed, and which the kernel refuses."""
    parent = os.getppid()
    walls = confine(directory=Path(question["directory"]))
    attempts: dict[str, Callable[[], object]] = {
        "environment of the worker": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "memory of the worker": lambda: Path(f"/proc/{parent}/mem").open("rb").close(),
        "signal to the worker": lambda: os.kill(parent, 0),
        "network": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        "storage of others": lambda: Path(question["others"]).read_bytes(),
        "home": lambda: list(Path(question["home"]).iterdir()),
    }
    if question["database"] is not None:
        attempts["database"] = lambda: _connect(question["database"])
    outcome = {name: _outcome(attempt) for name, attempt in attempts.items()}
    return outcome | {"new privileges": REFUSED if walls.privileges else CAME_THROUGH}


def _connect(address: list[Any]) -> None:
    family, where = (socket.AF_UNIX, address[0]) if len(address) == 1 else (socket.AF_INET, tuple(address))
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(where)


def _outcome(attempt: Callable[[], object]) -> str:
    """Only a refusal by the kernel counts: a server that is away proves nothing."""
    try:
        attempt()
    except PermissionError:
        return REFUSED
    except OSError as error:
        return f"{CAME_THROUGH} to {error.strerror or type(error).__name__}"
    return CAME_THROUGH


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(_attempt(json.loads(sys.argv[1]))))  # noqa: T201 -- the answer to the worker
        return
    for name, word in probe(Settings()).items():
        print(f"{name:28}{word}")  # noqa: T201 -- a command


if __name__ == "__main__":
    main()
