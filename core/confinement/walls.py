"""Every wall that the kernel allows, raised by the process that is to stay behind them."""

from __future__ import annotations

import ctypes
import resource
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from core.confinement import landlock, seccomp

PR_SET_NO_NEW_PRIVS = 38
CAPABILITIES = 0x20080522
"""Version of the structures of capget(2)."""
OPENING_FILES = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


@dataclass(frozen=True)
class Limits:
    """``memory``: bytes of address space; ``cpu``: seconds; ``file``: bytes of the largest file that is written;
    None: as before."""

    memory: int | None = None
    cpu: int | None = None
    file: int | None = None


@dataclass(frozen=True)
class Walls:
    """Which walls stand. ``files``: only what was named can be opened, and no process outside can be looked into;
    ``network``: no socket; ``signals``: none to processes outside; ``privileges``: no program gains any."""

    privileges: bool
    files: bool
    network: bool
    signals: bool

    @property
    def missing(self) -> list[str]:
        return [name for name, stands in vars(self).items() if not stands]


def raise_walls(
    *,
    readable: Iterable[Path | int] = (),
    programs: Iterable[Path] = (),
    writable: Iterable[Path] = (),
    devices: Iterable[Path] = (),
    may_start_programs: bool = False,
    limits: Limits | None = None,
) -> Walls:
    """For good: nothing lowers them again. The process must have no second thread yet. Raises nothing for a wall that
    this kernel does not know; whoever needs it looks at the answer."""
    _limit(limits or Limits())
    privileges = sys.platform == "linux" and _drop_privileges()
    version = landlock.version()
    files = version > 0 and _raised(
        lambda: landlock.restrict(readable=readable, programs=programs, writable=writable, devices=devices)
    )
    network = sys.platform == "linux" and _raised(lambda: seccomp.refuse(programs=not may_start_programs))
    return Walls(privileges, files, network, signals=files and version >= 6)


def _drop_privileges() -> bool:
    """No program gains any, and of those of root only what opens files stays: with others it could read the environment
    of every process past Landlock (Linux 6.11 on, CAP_PERFMON)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    header, now = struct.pack("Ii", CAPABILITIES, 0), ctypes.create_string_buffer(24)
    if libc.capget(header, now) != 0:
        return False
    effective, permitted, *_ = struct.unpack("6I", now.raw)
    capabilities = (effective & OPENING_FILES, permitted & OPENING_FILES, 0, 0, 0, 0)
    return bool(libc.capset(header, struct.pack("6I", *capabilities)) == 0)


def _raised(wall: Callable[[], None]) -> bool:
    try:
        wall()
    except OSError:
        return False
    return True


def _limit(limits: Limits) -> None:
    bounds = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, limits.memory)]
    bounds += [(resource.RLIMIT_CPU, limits.cpu), (resource.RLIMIT_FSIZE, limits.file)]
    for limit, value in bounds:
        if value is not None:
            resource.setrlimit(limit, (value, value))
