"""Files by ``sendfile`` and by reading: the same bytes, the same ends."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.web.file_response import ObjectPart, Piece, PiecesResponse, cut, length_of
from app.web.kernel_copy import PIECE, FileProtocol
from core.storage import LocalStorage

CONTENT = random.Random(1).randbytes(3 * PIECE + 12_345)
PROTOCOLS = pytest.mark.parametrize("protocol", [FileProtocol, H11Protocol])


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    storage = LocalStorage(tmp_path / "storage")
    (tmp_path / "source").write_bytes(CONTENT)
    storage.put("a/file", tmp_path / "source")
    return storage


@asynccontextmanager
async def serving(
    storage: LocalStorage, pieces: list[Piece], protocol: type[asyncio.Protocol]
) -> AsyncIterator[httpx.AsyncClient]:
    """The pieces at every path but ``/hello``."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = PlainTextResponse("hello")
        if Request(scope).url.path != "/hello":
            response = PiecesResponse(storage, pieces, status_code=200, headers={}, media_type="x/y")
        await response(scope, receive, send)

    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, http=protocol)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client
    finally:
        server.should_exit = server.force_exit = True
        await task


PARTS = [
    b"head",
    ObjectPart("a/file", 7, 2 * PIECE + 5),
    b"",
    b"middle",
    ObjectPart("a/file", 0, 0),
    ObjectPart("a/file", 99, 1),
]
WHOLE = b"head" + CONTENT[7 : 2 * PIECE + 12] + b"middle" + CONTENT[99:100]


@PROTOCOLS
async def test_pieces_arrive_in_order_over_one_connection(
    storage: LocalStorage, protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_the_kernel = 0
    real = os.sendfile

    def counted(*arguments: Any) -> int:
        nonlocal by_the_kernel
        sent = real(*arguments)
        by_the_kernel += sent
        return sent

    monkeypatch.setattr(os, "sendfile", counted)
    async with serving(storage, PARTS, protocol) as client:
        for _ in range(2):
            response = await client.get("/file")
            assert response.headers["content-length"] == str(len(WHOLE))
            assert hashlib.sha256(response.content).digest() == hashlib.sha256(WHOLE).digest()
        assert (await client.get("/hello")).text == "hello"
    files = 2 * sum(piece.length for piece in PARTS if isinstance(piece, ObjectPart))
    assert by_the_kernel == (files if protocol is FileProtocol else 0)


async def test_requests_that_are_sent_together_are_answered_in_turn(storage: LocalStorage) -> None:
    pieces: list[Piece] = [ObjectPart("a/file", 0, PIECE + 7)]
    async with serving(storage, pieces, FileProtocol) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"".join(f"GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for name in ("a", "hello", "b")))
        bodies = []
        for _ in range(3):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200")
            bodies.append(await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0])))
        writer.close()
    assert bodies == [CONTENT[: PIECE + 7], b"hello", CONTENT[: PIECE + 7]]


@PROTOCOLS
async def test_a_file_that_ends_early_breaks_the_connection(
    storage: LocalStorage, protocol: type[asyncio.Protocol]
) -> None:
    async with serving(storage, [ObjectPart("a/file", 0, len(CONTENT) + 1)], protocol) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/file")
        assert (await client.get("/hello")).text == "hello"


@PROTOCOLS
async def test_a_client_that_goes_away_is_no_error(
    storage: LocalStorage, protocol: type[asyncio.Protocol], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with serving(storage, [ObjectPart("a/file", 0, len(CONTENT))] * 5, protocol) as client:
        for _ in range(3):
            async with client.stream("GET", "/file") as response:
                await anext(response.aiter_bytes(1000))
        assert (await client.get("/hello")).text == "hello"
    assert caplog.records == []


@PROTOCOLS
async def test_a_client_that_does_not_read_holds_up_nobody(
    storage: LocalStorage, protocol: type[asyncio.Protocol]
) -> None:
    pieces: list[Piece] = [ObjectPart("a/file", 0, len(CONTENT))]
    async with serving(storage, pieces, protocol) as client, client.stream("GET", "/file") as slow:
        assert (await client.get("/hello")).text == "hello"
        quick = await client.get("/file")
        assert quick.content == CONTENT
        assert await slow.aread() == CONTENT


@given(
    sizes=st.lists(st.integers(0, 20), max_size=6),
    literal=st.lists(st.booleans(), min_size=6, max_size=6),
    start=st.integers(0, 130),
    length=st.integers(0, 130),
)
def test_cutting_pieces_is_slicing_their_bytes(sizes: list[int], literal: list[bool], start: int, length: int) -> None:
    whole, pieces = b"", list[Piece]()
    for size, plain in zip(sizes, literal, strict=False):
        content = bytes(range(len(whole), len(whole) + size))
        pieces.append(content if plain else ObjectPart("k", len(whole), size))
        whole += content
    found = cut(pieces, start=start, length=length)
    read = [piece if isinstance(piece, bytes) else whole[piece.start :][: piece.length] for piece in found]
    assert b"".join(read) == whole[start : start + length]
    assert length_of(found) == len(whole[start : start + length])
    assert all(read)


async def test_no_answer_waits_for_an_acknowledgement_on_a_socket_from_another_process() -> None:
    made: list[asyncio.Transport] = []

    class Watched(FileProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            made.append(transport)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        # As the children of `uvicorn --workers` get it: asyncio does not know it for TCP without the number.
        inherited = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=os.dup(listener.fileno()))
        config = uvicorn.Config(PlainTextResponse("hello"), lifespan="off", log_config=None, http=Watched)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[inherited]))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            assert (await client.get("/")).text == "hello"
            accepted = made[0].get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        server.should_exit = True
        await task
