"""A TCP relay in front of the served API that breaks connections off in the middle of an answer, as networks do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Cuts:
    """``after``: for each next request, the number of answered bytes after which its connection breaks."""

    after: list[int] = field(default_factory=list)
    made: int = 0
    """Connections broken so far."""
    requests: list[bytes] = field(default_factory=list)
    """The heads of the requests that came through, in order."""
    url: str = ""


@asynccontextmanager
async def cutting(port: int) -> AsyncIterator[Cuts]:
    """A relay to ``port``. A cut is a reset: the client sees a broken connection, not an end."""
    cuts = Cuts()
    open_connections: set[asyncio.Task[None]] = set()

    async def relay(client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_connections.add(task)
        try:
            await _relay(client, answer, cuts, port)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            open_connections.discard(task)
            answer.transport.abort()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    cuts.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield cuts
    finally:
        server.close()
        for task in list(open_connections):
            task.cancel()


async def _relay(client: asyncio.StreamReader, answer: asyncio.StreamWriter, cuts: Cuts, port: int) -> None:
    upstream, request = await asyncio.open_connection("127.0.0.1", port)
    left: int | None = None

    async def forward() -> None:
        nonlocal left
        while chunk := await client.read(1 << 16):
            if chunk.split(b" ", 1)[0] in (b"GET", b"POST", b"DELETE"):
                cuts.requests.append(chunk.split(b"\r\n\r\n")[0])
                left = cuts.after.pop(0) if cuts.after else None
            request.write(chunk)
            await request.drain()

    sending = asyncio.create_task(forward())
    try:
        while chunk := await upstream.read(1 << 14):
            if left is not None and len(chunk) >= left:
                answer.write(chunk[:left])
                with contextlib.suppress(ConnectionError):
                    await answer.drain()
                cuts.made += 1
                return
            left = None if left is None else left - len(chunk)
            answer.write(chunk)
            await answer.drain()
    finally:
        sending.cancel()
        request.close()
