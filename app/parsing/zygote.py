"""The process that children are forked from, with the libraries loaded.

    python -m app.parsing.zygote <number of its socket>

It has no settings, no threads and no secrets. A message on its socket either forks a child, and passes the files of its
job, of which the first is the job's socket; or it names a child to kill.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import sys

from app.parsing import frames
from app.parsing.operations import OPERATIONS, Job, Refused
from core.confinement import Limits, raise_walls

MOST_FILES = 16
FORK, KILL = b"f", b"k"
NICENESS = 10
"""Children run at a lower priority than the API's own threads."""
REAP_SECONDS = 1.0


def main(descriptor: int) -> None:
    control = socket.socket(fileno=descriptor)
    _load()
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([control], [], [], REAP_SECONDS if children else None)
        _reap(children)
        if not ready:
            continue
        message, files, _, _ = socket.recv_fds(control, 64, MOST_FILES)
        if not message:  # the API is gone
            for child in children:
                os.kill(child, signal.SIGKILL)
            return
        if message[:1] == KILL:
            child = int(message[1:])
            if child in children:  # not reaped, so the process id is still this child's
                os.kill(child, signal.SIGKILL)
            continue
        child = os.fork()
        if child == 0:
            control.close()
            _work(files)
        children.add(child)
        for file in files:
            os.close(file)


def _load() -> None:
    """Load what a child needs, because it cannot open files."""
    import gzip  # noqa: F401

    import pyarrow as pa
    import pyarrow.parquet
    import tokenizers  # noqa: F401
    from PIL import Image

    Image.preinit()
    Image.init()
    pa.set_cpu_count(1)
    gc.collect()
    gc.freeze()  # children share these pages until one writes to them
    gc.disable()  # a child lives for one job


def _reap(children: set[int]) -> None:
    for child in list(children):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                continue
        children.discard(child)


def _work(files: list[int]) -> None:
    """Never returns."""
    try:
        api = socket.socket(fileno=files[0])
        frames.send(api, frames.PROCESS, str(os.getpid()).encode())
        _, request = frames.receive(api)
        name, arguments, limits = pickle.loads(request)  # noqa: S301 -- the API wrote it
        _confine(files[1:], limits)
        kind, answer = _answered(name, Job(api, files[1:]), arguments)
        frames.send(api, kind, answer)
    except BaseException:  # noqa: BLE001 -- a child says nothing but its answer
        os._exit(1)
    os._exit(0)


def _confine(files: list[int], limits: Limits) -> None:
    os.setsid()
    os.nice(NICENESS)
    # With autogroup scheduling niceness counts only within a session: four children of their own left the API a fifth
    # of two cores.
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:  # noqa: PTH123
        group.write(str(NICENESS))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write("1000")  # when memory is short, the kernel kills this process first
    memory = None if limits.memory is None else _address_space() + limits.memory
    raise_walls(readable=files, limits=Limits(memory=memory, cpu=limits.cpu, file=0))


def _address_space() -> int:
    """Bytes of address space that the libraries take."""
    try:
        with open("/proc/self/statm") as sizes:  # noqa: PTH123
            return int(sizes.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 30


def _answered(name: str, job: Job, arguments: tuple[object, ...]) -> tuple[bytes, bytes]:
    operation = OPERATIONS[name]
    try:
        return frames.ANSWER, operation.answer.dump_json(operation.work(job, *arguments))
    except Refused as refused:
        return frames.REFUSED, refused.encoded
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 -- the boundary of the process
        return frames.FAILED, f"{type(error).__name__}: {error}"[:500].encode("utf-8", "replace")


if __name__ == "__main__":
    main(int(sys.argv[1]))
