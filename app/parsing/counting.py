"""Count the tokens of texts inside a confined child, which may start no program: in a fork of it."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from quant_experts.planning.count_child import counted
from quant_experts.planning.counting import PATIENCE, TextTokens, answered, bad


class CountingHere:
    """Same interface as ``quant_experts.planning.counting.Counting``."""

    def __init__(self, tokenizer: bytes, *, seconds: int) -> None:
        self._tokenizer = tokenizer
        self._seconds = seconds
        self._texts: list[tuple[str, bool]] = []

    def add(self, text: str, *, special: bool) -> None:
        whole = text if text.isascii() else text.encode("utf-8", "replace").decode()  # no half of a surrogate pair
        self._texts.append((whole, special))

    def finish(self) -> list[TextTokens]:
        """One for each text. Raises Unreadable naming the file."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _count(writer, self._tokenizer, self._texts, self._seconds)
        os.close(writer)
        answer, late = _read(reader, time.monotonic() + PATIENCE * self._seconds)
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if late or (not answer and status == -signal.SIGXCPU):
            raise bad(f"counting with it took longer than {self._seconds} seconds")
        return answered(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._texts.clear()


def _count(writer: int, tokenizer: bytes, texts: Sequence[tuple[str, bool]], seconds: int) -> None:
    """Never returns."""
    try:
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds if most < 0 else min(seconds, most), most))
        with os.fdopen(writer, "w") as answer:
            answer.write(json.dumps(counted(tokenizer, texts)))
    except BaseException:  # noqa: BLE001 -- a child says nothing but its answer
        os._exit(1)
    os._exit(0)


def _read(source: int, deadline: float) -> tuple[bytes, bool]:
    """All bytes until the end, and whether the deadline passed before it."""
    data = bytearray()
    while select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(source, 1 << 16)
        if not chunk:
            return bytes(data), False
        data += chunk
    return bytes(data), True
