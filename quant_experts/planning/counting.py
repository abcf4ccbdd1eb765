"""Texts counted by a model's own ``tokenizer.json``, in a process that is ended when it takes too much."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, cast

from quant_experts.planning.errors import Unreadable

TOKENIZER = "tokenizer.json"
CHILD = Path(__file__).with_name("count_child.py")
MEMORY = 2 << 30
"""Address space of the process. The tokenizer of Gemma 3, the largest that is known, takes a fifth of it."""
PATIENCE = 3
"""Seconds on the clock for each of the CPU: the machine has other work."""


class Counting:
    """Texts go in one by one; their numbers of tokens come out together at the end.

    >>> with Counting(tokenizer, seconds=5) as counting:
    ...     counting.add("Which colour?", special=False)
    ...     counts = counting.finish()
    """

    def __init__(self, tokenizer: bytes, *, seconds: int) -> None:
        """``seconds``: of the CPU. Raises nothing: what is wrong comes out at the end."""
        self._seconds = seconds
        self._texts = 0
        self._late = False
        self._process = subprocess.Popen(  # noqa: S603 -- this interpreter, a program of ours
            [sys.executable, "-I", str(CHILD), str(seconds), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._timer = threading.Timer(PATIENCE * seconds, self._give_up)
        self._timer.daemon = True
        self._timer.start()
        self._write(len(tokenizer).to_bytes(8, "little") + tokenizer)

    def add(self, text: str, *, special: bool) -> None:
        """``special``: with the special tokens that the tokenizer adds of itself."""
        self._texts += 1
        whole = text if text.isascii() else text.encode("utf-8", "replace").decode()  # no half of a surrogate pair
        self._write(json.dumps([whole, special]).encode() + b"\n")

    def finish(self) -> list[TextTokens]:
        """One for each text. Raises Unreadable naming the file."""
        self._close()
        output = cast(BinaryIO, self._process.stdout).read()
        self._process.wait()
        self._timer.cancel()
        if self._late or self._process.returncode in (-9, -24):  # SIGKILL and SIGXCPU
            raise bad(f"counting with it took longer than {self._seconds} seconds")
        return answered(output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()
        self._process.kill()
        self._close()
        cast(BinaryIO, self._process.stdout).close()
        self._process.wait()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # it ended; its last words say why
            cast(BinaryIO, self._process.stdin).write(data)

    def _close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            cast(BinaryIO, self._process.stdin).close()

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()


class TextTokens(NamedTuple):
    """``largest``: of the tokens' ids; -1 for a text without any."""

    tokens: int
    largest: int


def answered(output: bytes) -> list[TextTokens]:
    """What the process wrote. Raises Unreadable naming the file."""
    try:
        answer = json.loads(output)
    except ValueError:
        raise bad("counting with it needs too much memory, or ends in a crash") from None
    if "error" in answer:
        raise bad(f"it cannot be used: {answer['error']}")
    return [TextTokens(int(count), int(largest)) for count, largest in answer["counts"]]


def bad(reason: str) -> Unreadable:
    return Unreadable("invalid_model", f"{TOKENIZER}: {reason}")
