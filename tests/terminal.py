"""A command on a terminal of its own: a pseudo-terminal, and a screen that shows what a person would see."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pyte

from tests.services import wait_until


class Terminal:
    """The screen of one running ``qe``; it is read to the end whether or not anybody looks."""

    def __init__(
        self,
        *arguments: str,
        columns: int = 100,
        lines: int = 30,
        stdout: Path | None = None,
        kind: str = "xterm-256color",
    ) -> None:
        """``stdout``: a file to which it leads instead."""
        self._master, slave = pty.openpty()
        self._size(columns, lines)
        self._screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.raw = b""
        """All that was written to it."""
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        with contextlib.ExitStack() as opened:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "quant_experts.cli", *arguments],
                stdin=slave,
                stdout=slave if stdout is None else opened.enter_context(stdout.open("wb")),
                stderr=slave,
                env={**environment, "TERM": kind},
                start_new_session=True,
                preexec_fn=_take_the_terminal,
            )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._reader.start()

    def shown(self) -> list[str]:
        """What has scrolled out of it and what stands on it, without blanks at the right and lines at the end."""
        with self._lock:
            above = ["".join(line[x].data for x in range(self._screen.columns)) for line in self._screen.history.top]
            lines = [line.rstrip() for line in (*above, *self._screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def wait_for(self, text: str) -> None:
        wait_until(lambda: any(text in line for line in self.shown()), what=f"{text!r} on {self.shown()}")

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, columns: int, lines: int) -> None:
        with self._lock:
            self._screen.resize(lines, columns)
        self._size(columns, lines)  # the kernel tells the process with SIGWINCH

    def end(self, seconds: float = 30) -> int:
        """The exit code, when all that was written is on the screen."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    @property
    def cursor_is_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other side open any more
            while chunk := os.read(self._master, 1 << 16):
                with self._lock:
                    self.raw += chunk
                    self._stream.feed(chunk)
        os.close(self._master)


def _take_the_terminal() -> None:
    """So that Ctrl-C and the size of the window reach it; and with the handlers of an ordinary program."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def on_terminal(
    *arguments: str,
    columns: int = 100,
    lines: int = 30,
    stdout: Path | None = None,
    kind: str = "xterm-256color",
) -> Iterator[Terminal]:
    terminal = Terminal(*arguments, columns=columns, lines=lines, stdout=stdout, kind=kind)
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
