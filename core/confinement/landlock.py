"""Landlock: from now on this process and its children open only what is named here (landlock(7), Linux 5.13 on).

No well-kept package of the Python index speaks to it, so these are the three system calls.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""The same numbers on every architecture."""
ASK_VERSION = 1
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights over files there are, by version; later versions have added none."""
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
TCP = 0b11
"""The rights to bind and to connect, from version 4 on."""
ABSTRACT_SOCKETS, SIGNALS = 1, 2
"""Signals and abstract sockets to processes outside, from version 6 on."""
READS = READ_FILE | READ_DIR


def version() -> int:
    """The version of Landlock in this kernel; 0 where there is none, or where it is switched off."""
    if sys.platform != "linux":
        return 0
    abi: int = ctypes.CDLL(None, use_errno=True).syscall(CREATE_RULESET, None, 0, ASK_VERSION)
    return max(0, abi)


def restrict(
    *, readable: Iterable[Path | int], programs: Iterable[Path], writable: Iterable[Path], devices: Iterable[Path]
) -> None:
    """Paths stand for all that is beneath them, numbers for open files; ``programs`` are readable too, ``writable``
    whatever else. What does not exist is passed over. Raises OSError, then nothing is restricted."""
    abi = version()
    every = (1 << RIGHTS[min(abi, 5)]) - 1
    network = TCP if abi >= 4 else 0
    scopes = ABSTRACT_SOCKETS | SIGNALS if abi >= 6 else 0
    attributes = struct.pack("QQQ", every, network, scopes)[: {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}.get(abi, 24)]
    ruleset = _call(CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for rights, paths in (
            (READS, readable),
            (READS | EXECUTE, programs),
            (every & ~(EXECUTE | IOCTL_DEV), writable),
            (READS | WRITE_FILE | IOCTL_DEV, devices),
        ):
            for path in paths:
                _allow(ruleset, path, rights & every)
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path | int, rights: int) -> None:
    try:
        descriptor = os.dup(path) if isinstance(path, int) else os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= OF_FILES
        _call(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: int | bytes) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(
        number, *(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    )
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
