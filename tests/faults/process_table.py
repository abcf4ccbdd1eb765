"""The process table as a witness: who computes for which job, and who outlived the process that started it."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ORPHAN_SECONDS = 10.0
INTERVAL = 0.25
JOB_FILE = re.compile(r"/(job_[0-9a-f]+)/a(\d+)/job\.json$")


@dataclass(frozen=True)
class Running:
    """A runner process."""

    pid: int
    job_id: str
    attempt: int


@dataclass(frozen=True)
class Overlap:
    """Two runners that computed for one job at once."""

    first: Running
    second: Running

    def __str__(self) -> str:
        pids = f"processes {self.first.pid} and {self.second.pid}"
        return f"{self.first.job_id} was computed by attempts {self.first.attempt} and {self.second.attempt} ({pids})"


def state(pid: int) -> str:
    """The kernel's letter: R, S, D, T (stopped), Z (dead, not waited for), or X when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def runners(directory: Path) -> list[Running]:
    """Runners that compute below ``directory``; neither stopped nor dead ones do.

    A child of a runner is none, although it has the same command line until it has become another program.
    """
    prefix = str(directory)
    found = []
    for pid in _pids():
        arguments = _read(pid, "cmdline").split("\0")
        for argument in arguments:
            if argument.startswith(prefix) and (match := JOB_FILE.search(argument)):
                found.append(Running(pid, match[1], int(match[2])))
    pids = {each.pid for each in found}
    return [each for each in found if state(each.pid) in "RSD" and pids.isdisjoint(ancestors(each.pid))]


def orphans(directory: Path, *, seconds: float = ORPHAN_SECONDS) -> list[str]:
    """Processes that work below ``directory`` and are no descendants of this one, after they had ``seconds`` to end."""
    deadline = time.monotonic() + seconds
    while (found := list(_orphans(str(directory)))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


class Witness:
    """Looks at the process table all the time, in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)
        self.overlaps: set[Overlap] = set()
        self.seen: dict[tuple[str, int], float] = {}
        """(job, attempt) → when its runner was first seen, on the monotonic clock."""

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            by_job: dict[str, list[Running]] = defaultdict(list)
            for running in runners(self._directory):
                by_job[running.job_id].append(running)
                self.seen.setdefault((running.job_id, running.attempt), time.monotonic())
            for together in by_job.values():
                # The table is read one process at a time: the first may have ended before the second began.
                still = [running for running in together if state(running.pid) in "RSD"]
                if len(still) > 1:
                    first, second = sorted(still, key=lambda running: running.attempt)[:2]
                    self.overlaps.add(Overlap(first, second))


def _orphans(directory: str) -> Iterator[str]:
    for pid in _pids():
        if pid == os.getpid() or state(pid) in "ZX":
            continue
        words = _read(pid, "cmdline")
        if (directory in words or directory in _read(pid, "environ")) and os.getpid() not in ancestors(pid):
            yield f"process {pid} ({' '.join(words.split(chr(0)))[:120]})"


def ancestors(pid: int) -> Iterator[int]:
    """Parent, grandparent, and so on."""
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return
        yield pid


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
