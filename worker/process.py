"""Child processes that cannot outlive us and know nothing that they do not need.

A child leads a session of its own, so that one signal reaches all it started, and the kernel kills it when the process
that started it dies: ``kill -9`` of a worker otherwise leaves its runner computing (tried, see service.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from core import crash_points

PR_SET_PDEATHSIG = 1
INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    crash_points.VARIABLE,  # no service sets it
)
"""What a computing or downloading child inherits: an allow-list, so that a secret added later stays outside."""
FOR_DOWNLOADS = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
"""The address of a proxy may hold a password."""


def scrubbed_environment(
    home: Path, extra: Mapping[str, str] | None = None, *, downloads: bool = False
) -> dict[str, str]:
    """The environment of a runner: offline, without ``QE_*`` and credentials, its home (caches, tokens) in ``home``."""
    names = (*INHERITED, *(FOR_DOWNLOADS if downloads else ()))
    inherited = {name: os.environ[name] for name in names if name in os.environ}
    return {
        **inherited,
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads of OpenMP that wait by spinning take the cores from each other as soon as anything else runs here.
        # A run beside another busy program took 110 s so, and 72 s with sleeping threads (2 cores); the same bytes.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        **(extra or {}),
    }


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    directory: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    user: str | None = None,
    at_parents_death: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start ``command``; stderr, and stdout unless it is piped, are appended to ``log``.

    Call it from a thread that lives as long as the child shall: the kernel's parent-death signal follows the thread.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        return subprocess.Popen(  # noqa: S603 -- the command is ours; no shell, no client's words in it
            list(command),
            env=dict(environment),
            cwd=directory,
            stdin=stdin,
            stdout=sink if stdout is None else stdout,
            stderr=sink,
            # Unbuffered: bytes that a dead child no longer takes would wait in our buffer and fail its closing.
            bufsize=0,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            preexec_fn=_bound_to_parent(at_parents_death),
        )


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel for ``number`` when the calling process's parent dies. Linux only; elsewhere nothing happens."""
    ask = _bound_to_parent(number, os.getppid())
    if ask is not None:
        ask()


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the child alone; no error when it is gone."""
    if process.poll() is None:
        process.send_signal(number)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the child and all it started; nothing when it has been reaped. Safe from any thread."""
    if process.returncode is not None:  # its number may be another's by now
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for the child, kill what it leaves of its group, and return its exit status (negative: a signal)."""
    if process.returncode is None:
        # Look without reaping: as long as the dead leader is there, nobody else can have the group's number.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        kill_group(process)
    return process.wait()


def lines(pipe: IO[bytes], *, tick: float = 0.2, limit: int = 64 * 1024 * 1024) -> Iterator[bytes | None]:
    """The child's output line by line, and None whenever ``tick`` seconds pass without a whole one; ends with the pipe.

    Raises ValueError for a line beyond ``limit`` bytes. An unfinished last line is dropped: its writer died in it.
    """
    buffer = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(tick):
                yield None
                continue
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return
            start = len(buffer)
            buffer += chunk
            while (end := buffer.find(b"\n", start)) >= 0:
                yield bytes(buffer[:end])
                del buffer[: end + 1]
                start = 0
            if len(buffer) > limit:
                raise ValueError(f"a line of more than {limit} bytes")


def describe_end(returncode: int) -> str:
    """``-9`` → ``was killed by SIGKILL``; ``3`` → ``ended with exit code 3``."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def write_all(pipe: IO[bytes] | None, data: bytes) -> None:
    """Write to a child's stdin; a child that is gone has no use for it."""
    if pipe is None:
        return
    try:
        pipe.write(data)
        pipe.flush()
    except (BrokenPipeError, ValueError):
        return


def _bound_to_parent(number: signal.Signals, parent: int | None = None) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    # Looked up before the fork: between fork and exec nothing may take a lock.
    prctl = ctypes.CDLL(None).prctl
    parent_id = os.getpid() if parent is None else parent

    def ask_the_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent_id:  # it died before we asked
            os._exit(1)

    return ask_the_kernel
