"""What this machine computes on and how much it holds, told without loading torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MEMORY_INFO = Path("/proc/meminfo")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Capacity:
    """``memory``: bytes of the machine or of its container; ``device_memory``: of the smallest GPU; None where nobody
    says."""

    memory: int | None
    device_memory: int | None
    cores: int | None


UNKNOWN = Capacity(None, None, None)


def describe() -> str:
    """Names of the NVIDIA GPUs, or ``cpu``."""
    return ", ".join(ask_gpus("name")) or "cpu"


def capacity() -> Capacity:
    """What a job can use here. Raises nothing."""
    sizes = [int(size) << 20 for size in ask_gpus("memory.total") if size.isdigit()]
    return Capacity(_memory(), min(sizes, default=None), len(os.sched_getaffinity(0)))


def _memory() -> int | None:
    """The machine's, or the container's where that is less."""
    known = []
    try:
        words = MEMORY_INFO.read_text().split()
        known.append(int(words[words.index("MemTotal:") + 1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    for path in CGROUP_LIMITS:
        try:
            known.append(int(path.read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(known, default=None)


def ask_gpus(what: str) -> list[str]:
    """One answer per GPU; none where there is no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(  # noqa: S603 -- a fixed command
            [program, f"--query-gpu={what}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
