"""Frames between the API and a child: a kind and bytes. The API's are pickled; a child's are JSON."""

from __future__ import annotations

import socket
import struct
import time

HEAD = struct.Struct("<cQ")
PROCESS, ASK, ANSWER, REFUSED, FAILED = b"#", b"?", b"=", b"!", b"x"
MOST_FRAME = 128 << 20


class Ended(Exception):
    """The other side closed the socket or broke the protocol."""


def send(to: socket.socket, kind: bytes, data: bytes) -> None:
    """Raises Ended."""
    try:
        to.sendall(HEAD.pack(kind, len(data)))
        to.sendall(data)
    except TimeoutError:
        raise
    except OSError as error:
        raise Ended from error


def receive(source: socket.socket, *, deadline: float | None = None) -> tuple[bytes, bytes]:
    """``deadline``: on the monotonic clock. Raises Ended, and TimeoutError."""
    kind, size = HEAD.unpack(_exactly(source, HEAD.size, deadline))
    if size > MOST_FRAME:
        raise Ended
    return kind, bytes(_exactly(source, size, deadline))


def _exactly(source: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        if deadline is not None:
            source.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            count = source.recv_into(view)
        except TimeoutError:
            raise
        except OSError as error:
            raise Ended from error
        if count == 0:
            raise Ended
        view = view[count:]
    return data
