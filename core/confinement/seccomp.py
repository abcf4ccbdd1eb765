"""seccomp: from now on the kernel refuses these system calls to this process and its children (seccomp(2)).

A list of what is refused, not of what is allowed: torch and CUDA use hundreds of calls, and new ones with each release.
What is on it makes sockets, looks into other processes, or widens the attack surface of the kernel for nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_AT, ARCHITECTURE_AT = 0, 4
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
PR_SET_SECCOMP, MODE_FILTER = 22, 2
X32 = 0x40000000
"""Numbers of another way to call the same kernel on x86-64."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NETWORK = {
    "x86_64": {"socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288},
    "aarch64": {"socket": 198, "connect": 203, "accept": 202, "bind": 200, "listen": 201, "accept4": 242},
}
"""A pair of sockets that are connected to each other from the start stays possible: Python's event loop needs one."""
PROGRAMS = {"x86_64": {"execve": 59, "execveat": 322}, "aarch64": {"execve": 221, "execveat": 281}}
EVERYWHERE = {
    "pidfd_getfd": 438,
    "io_uring_setup": 425,  # makes sockets and opens files past these filters
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "mount_setattr": 442,
}
KERNEL = {
    "x86_64": {
        "ptrace": 101,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "bpf": 321,
        "userfaultfd": 323,
        "perf_event_open": 298,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "mount": 165,
        "umount2": 166,
        "pivot_root": 155,
        "chroot": 161,
        "unshare": 272,
        "setns": 308,
        "open_by_handle_at": 304,
        "init_module": 175,
        "finit_module": 313,
        "kexec_load": 246,
    },
    "aarch64": {
        "ptrace": 117,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "bpf": 280,
        "userfaultfd": 282,
        "perf_event_open": 241,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "mount": 40,
        "umount2": 39,
        "pivot_root": 41,
        "chroot": 51,
        "unshare": 97,
        "setns": 268,
        "open_by_handle_at": 265,
        "init_module": 105,
        "finit_module": 273,
        "kexec_load": 104,
    },
}


def refuse(*, programs: bool) -> None:
    """``programs``: also to start any. Raises OSError where the kernel or the architecture has no such filter."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter is known for {machine}")
    numbers = {*NETWORK[machine].values(), *KERNEL[machine].values(), *EVERYWHERE.values()}
    numbers |= set(PROGRAMS[machine].values()) if programs else set()
    program = _program(ARCHITECTURES[machine], sorted(numbers))
    buffer = ctypes.create_string_buffer(program)
    filters = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_SECCOMP, MODE_FILTER, filters, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _program(architecture: int, numbers: list[int]) -> bytes:
    """Berkeley packet filter: look at the architecture, then compare the number with each that is refused."""
    steps = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (JUMP_AT_LEAST, len(numbers) + 1, 0, X32),
        *((JUMP_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
