"""Was a child killed for want of memory? The kernel counts such kills; a SIGKILL alone does not say who sent it."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number about as large as an address space."""
FIRST_TO_GO = 1000


def oom_kills() -> int:
    """Kills by the out-of-memory killer so far: in our cgroup where it has a counter, else on the whole machine."""
    for file in _files("memory.events", "memory.oom_control"):
        if (count := count_in(file)) is not None:
            return count
    return count_in(PROC / "vmstat") or 0


def count_in(file: Path) -> int | None:
    """``oom_kill`` of a ``memory.events`` (cgroup v2), ``memory.oom_control`` (v1) or ``vmstat``; None without one."""
    try:
        match = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else int(match[1])


def limit() -> int | None:
    """Bytes of memory that our cgroup may use; None without a limit."""
    for file in _files("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            bytes_ = int(file.read_text())
            return bytes_ if bytes_ < UNLIMITED else None
    return None


def give_up_first(child: subprocess.Popen[bytes]) -> None:
    """Have the kernel take the computing child before anything else: the supervisor must live to tell."""
    with contextlib.suppress(OSError):
        (PROC / str(child.pid) / "oom_score_adj").write_text(str(FIRST_TO_GO))


def _files(v2: str, v1: str) -> list[Path]:
    """Where our cgroup may keep the file; a container often sees its own cgroup as the root."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files += [CGROUPS / path.lstrip("/") / v2, CGROUPS / v2]
        elif "memory" in controllers.split(","):
            files += [CGROUPS / "memory" / path.lstrip("/") / v1, CGROUPS / "memory" / v1]
    return files
