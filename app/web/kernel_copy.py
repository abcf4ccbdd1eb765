"""Send parts of files from the page cache to the socket: uvicorn's HTTP/1.1 protocol with ``sendfile``.

    uvicorn --http app.web.kernel_copy:FileProtocol …

uvicorn has no extension for it, so the connection puts ``send_file`` into the ``state`` of every request's scope. A
response gets it with ``sender_of``. Under another server, or an event loop without ``sendfile``, there is none and the
response reads the file itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NODELAY
from typing import Any, BinaryIO

import h11
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

STATE = "send_file"
PATIENCE = 30.0
"""Seconds."""
PIECE = 1 << 20
"""Bytes of one call of ``sendfile``: a fast client would otherwise block the event loop for a whole file."""

SendFile = Callable[[BinaryIO, int, int], Awaitable[None]]
"""``(file, start, length)``: send exactly these bytes as part of the response's body."""


class FileCutShort(Exception):
    """The file ended early. The connection is closed, so the client notices."""


def sender_of(scope: Scope) -> SendFile | None:
    """``send_file`` of this connection; None where the server has no ``sendfile``."""
    sender: SendFile | None = scope.get("state", {}).get(STATE)
    return sender


class FileProtocol(H11Protocol):
    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
        if isinstance(self.loop, asyncio.SelectorEventLoop):  # uvloop has no sendfile
            self.app_state = {**app_state, STATE: self.send_file}
        self._debt: object = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # asyncio sets it on sockets that it opens itself. Those of `uvicorn --workers` come from the parent process,
        # and each response waited 40 ms for the client's delayed acknowledgement.
        socket = transport.get_extra_info("socket")
        if socket.family in (AF_INET, AF_INET6):
            socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        super().connection_made(transport)
        self._wait_for_client()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_client()

    def _wait_for_client(self) -> None:
        """Close the connection of a client that does not finish its request: uvicorn waits for ever, and a client
        opens 3 000 such connections easily. The timeout is for a head as a whole, and for each piece of a body."""
        state = self.conn.their_state
        has_begun = self.cycle is None or bool(self.conn.trailing_data[0])
        debt = state if state is h11.SEND_BODY or (state is h11.IDLE and has_begun) else None
        if debt is h11.IDLE and self._debt is h11.IDLE:
            return
        self._debt = debt
        self._stop_waiting()
        if debt is not None:
            self._timer = self.loop.call_later(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        if self._debt is h11.SEND_BODY and self.flow.read_paused:  # our side does not read
            self._timer = self.loop.call_later(PATIENCE, self._give_up)
        else:
            self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.app_state = {}  # breaks a reference cycle
        super().connection_lost(exc)

    async def send_file(self, file: BinaryIO, start: int, length: int) -> None:
        """After the response's start, whose ``Content-Length`` counts these bytes. Raises FileCutShort.

        A client that disconnects ends it without an error, as with any other body.
        """
        if length == 0 or self.cycle.disconnected or self.transport.is_closing():
            return
        # h11 counts the bytes against the announced length and gives the object back instead of joining it.
        self.conn.send_with_data_passthrough(h11.Data(data=_Elsewhere(length)))  # type: ignore[arg-type]
        end = start + length
        try:
            while start < end:
                count = await self.loop.sendfile(self.transport, file, start, min(PIECE, end - start))
                if count == 0:
                    raise FileCutShort(f"{end - start} bytes are missing")
                start += count
        except (ConnectionError, RuntimeError) as error:
            # The loop raises RuntimeError for a transport that is closing.
            if isinstance(error, RuntimeError) and not self.transport.is_closing():
                raise
            self.cycle.disconnected = True
            self.transport.abort()


class _Elsewhere:
    """Stub for bytes that h11 counts and never sees."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length
