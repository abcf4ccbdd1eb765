"""The API's side: one child process for each operation, killed when its request is cancelled."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from app.parsing import frames
from app.parsing.operations import Operation, exception_of
from app.web.threads import run_in_thread
from core.confinement import Limits

Result = TypeVar("Result")
LIMITS = Limits(memory=2 << 30, cpu=90)
"""512 MB of rows take 40 s and a tenth of that memory."""
PATIENCE = 2.0
"""Wall-clock seconds per CPU second: the machine is shared."""
INHERITED = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ", "VIRTUAL_ENV")
log = logging.getLogger(__name__)

Callbacks = Mapping[str, Callable[..., bytes]]
"""Functions that a child may call by name: it has no network and no other files."""


class Died(Exception):
    """The child exceeded a limit or crashed. The message completes "the rows: …"."""


async def parse(
    operation: Operation[Result],
    *arguments: Any,
    files: Sequence[Path] = (),
    callbacks: Callbacks | None = None,
    limits: Limits = LIMITS,
) -> Result:
    """The result of ``operation``. Raises Died, and the refusals of the operation. Cancelling the caller kills the
    child."""
    job = _Job(operation.name, arguments, limits)
    return await run_in_thread(lambda: operation.found(job.run(files, callbacks or {})), stop=job.kill)


def warm_up() -> None:
    """Start the zygote. Returns at once."""
    _zygote().start()


class _Job:
    def __init__(self, name: str, arguments: tuple[Any, ...], limits: Limits) -> None:
        self._request = pickle.dumps((name, arguments, limits))
        self._limits = limits
        self._child: bytes | None = None
        self._was_killed = False

    def run(self, files: Sequence[Path], callbacks: Callbacks) -> bytes:
        """The answer as JSON. Blocks."""
        deadline = time.monotonic() + PATIENCE * (self._limits.cpu or 3600)
        with contextlib.ExitStack() as stack:
            open_files = [stack.enter_context(path.open("rb")) for path in files]
            child = stack.enter_context(_zygote().fork([file.fileno() for file in open_files]))
            stack.callback(self.kill)
            try:
                _, self._child = frames.receive(child, deadline=deadline)
                frames.send(child, frames.ANSWER, self._request)
                return self._follow(child, callbacks, deadline)
            except frames.Ended:
                raise Died("reading it takes too much memory or time, or crashes the reader") from None
            except TimeoutError:
                raise Died(f"reading it takes longer than {self._limits.cpu} s") from None

    def _follow(self, child: socket.socket, callbacks: Callbacks, deadline: float) -> bytes:
        while not self._was_killed:
            kind, data = frames.receive(child, deadline=deadline)
            if kind == frames.ANSWER:
                return data
            if kind == frames.REFUSED:
                raise exception_of(data)
            if kind == frames.FAILED:
                log.error("a child that parses failed: %s", data.decode("utf-8", "replace"))
                raise Died("reading it crashes the reader")
            name, arguments = _question(data)
            frames.send(child, *_reply(callbacks.get(name), arguments))
        raise frames.Ended

    def kill(self) -> None:
        """Kill the child, from any thread."""
        self._was_killed = True
        if self._child is not None:
            _zygote().kill(self._child)


def _question(data: bytes) -> tuple[str, list[Any]]:
    import json

    try:
        name, arguments = json.loads(data)
    except ValueError:
        raise frames.Ended from None
    return str(name), list(arguments)


def _reply(answer: Callable[..., bytes] | None, arguments: list[Any]) -> tuple[bytes, bytes]:
    from app.parsing.operations import refusal

    if answer is None:
        raise frames.Ended
    try:
        return frames.ANSWER, answer(*arguments)
    except Exception as error:
        text = refusal(error)
        if text is None:
            raise
        return frames.REFUSED, text


class _Zygote:
    """The zygote process: started on first use, and again when it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        with self._lock:
            self._started()

    def fork(self, files: Sequence[int]) -> socket.socket:
        """The API's end of the socket of a new child."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            try:
                socket.send_fds(self._started(), [b"f"], [theirs.fileno(), *files])
            except OSError:  # it has just died
                self._end()
                socket.send_fds(self._started(), [b"f"], [theirs.fileno(), *files])
        return ours

    def kill(self, child: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None:
                self._control.send(b"k" + child)

    def _started(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._control is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 -- this interpreter, a program of ours
                    [sys.executable, "-P", "-m", "app.parsing.zygote", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=_environment(),
                    start_new_session=True,
                )
            self._control = ours
        return self._control

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


def _environment() -> dict[str, str]:
    """Environment of the zygote: no settings and no secrets."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    here = str(Path(__file__).parent.parent.parent)  # which may be only on our own path
    environment["PYTHONPATH"] = ":".join(filter(None, (here, environment.get("PYTHONPATH"))))
    return {**environment, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@functools.cache
def _zygote() -> _Zygote:
    """One zygote for this process, shared by its applications."""
    return _Zygote()
