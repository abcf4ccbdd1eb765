"""What this machine computes on and how much it holds, told without loading torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from core.ledger.placement import WorkerResources
from core.settings import Settings
from worker.ledger.workers import Capacity
from worker.nvidia import query_gpus

MEMORY_INFO = Path("/proc/meminfo")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Device:
    """What one runner computes on. ``uuid``: of a GPU, as ``CUDA_VISIBLE_DEVICES`` takes it; ``memory``: in bytes."""

    name: str
    uuid: str | None = None
    memory: int | None = None


CPU = Device("cpu")


class NoSuchDevice(Exception):
    """The GPUs cannot be told, or one that was asked for is not there; the message says what to do."""


def devices() -> list[Device]:
    """The GPUs that this process may use, one runner each; the CPU where there is none. Raises NoSuchDevice.

    ``CUDA_VISIBLE_DEVICES`` chooses as it does for CUDA, by UUID or by number. A number is nvidia-smi's, whatever
    ``CUDA_DEVICE_ORDER`` says.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None and names.strip() in ("", "-1"):
        return [CPU]
    try:
        lines = query_gpus("uuid,memory.total,name")
    except (OSError, subprocess.SubprocessError) as error:
        raise NoSuchDevice(
            f"nvidia-smi fails ({_reason(error)}): repair the driver, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        ) from error
    gpus = [_device(line) for line in lines]
    if not gpus or names is None:
        return gpus or [CPU]
    return [_choose(name.strip(), gpus) for name in names.split(",")]


def _device(line: str) -> Device:
    uuid, size, name = (part.strip() for part in line.split(",", 2))
    return Device(name, uuid, int(size) << 20 if size.isdecimal() else None)


def _choose(name: str, gpus: list[Device]) -> Device:
    if name.startswith("MIG-"):  # a part of a GPU, of which nvidia-smi's query does not tell
        return Device("MIG", name)
    for number, each in enumerate(gpus):
        if name == str(number) or (name.startswith("GPU-") and (each.uuid or "").startswith(name)):
            return each
    raise NoSuchDevice(
        f"CUDA_VISIBLE_DEVICES names {name!r}, and this machine has GPUs 0 to {len(gpus) - 1}: `nvidia-smi -L` lists"
        " them"
    )


def visible(device: Device, *, sharing: int) -> dict[str, str]:
    """What a runner's environment needs so that it computes on ``device``, beside ``sharing - 1`` other runners."""
    environment = {} if device.uuid is None else {"CUDA_VISIBLE_DEVICES": device.uuid}
    if sharing > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(_cores(sharing))
    return environment


def capacity(device: Device = CPU, *, sharing: int = 1) -> Capacity:
    """What a job can use on ``device`` of this machine, which ``sharing`` runners share. Raises nothing."""
    memory = _memory()
    return Capacity(None if memory is None else memory // sharing, device.memory, _cores(sharing))


def resources(device: Device, settings: Settings, *, sharing: int = 1) -> WorkerResources:
    """What a job can have here now. Raises nothing."""
    has = capacity(device, sharing=sharing)
    return WorkerResources(device.name, has.memory, has.device_memory, free_disk(settings))


def free_disk(settings: Settings) -> int | None:
    """Bytes that a job may fill: what is free, and what copies of models take that could go or are its own."""
    try:
        settings.work_directory.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(settings.work_directory).free + _bytes_of_copies(settings.resolved_home)
    except OSError:
        return None


_copies: dict[Path, tuple[float, int]] = {}
COPIES_SECONDS = 600.0


def _bytes_of_copies(home: Path) -> int:
    """Bytes of the copies of hub models, at most ten minutes old, because it walks the directories. Raises OSError."""
    at, total = _copies.get(home, (-COPIES_SECONDS, 0))
    if time.monotonic() - at < COPIES_SECONDS:
        return total
    total = 0
    for directory in (home / "models", home / "datasets"):
        for path in directory.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    _copies[home] = (time.monotonic(), total)
    return total


def _cores(sharing: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // sharing)


def _memory() -> int | None:
    """The machine's, or the container's where that is less."""
    limits = []
    try:
        words = MEMORY_INFO.read_text().split()
        limits.append(int(words[words.index("MemTotal:") + 1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    for path in CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(limits, default=None)


def _reason(error: Exception) -> str:
    output = error.stdout if isinstance(error, subprocess.CalledProcessError) else ""
    return " ".join(output.split())[:200] or str(error)
