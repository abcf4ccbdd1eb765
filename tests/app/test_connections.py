"""The wire itself: HEAD of everything, clients that begin and go no further, requests of two lengths."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path

import pytest

from app.web import kernel_copy
from tests.app.conftest import BOOTSTRAP_KEY, Api, ok, served
from tests.app.fuzzing_kinds import kind_of
from tests.app.fuzzing_supply import supply


async def test_head_of_everything_that_can_be_got(api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With real things, over one connection, which every answer leaves usable."""
    target = tmp_path / "supply.json"
    supplying = asyncio.create_task(supply(api, target, enough=1))
    while not target.exists() and not supplying.done():
        await asyncio.sleep(0.05)
    supplying.cancel()
    real = json.loads(target.read_text())
    async with served(api) as client:
        paths = ok(await client.get("/openapi.json"))["paths"]
        tried = 0
        for path, operations in paths.items():
            if "get" not in operations:
                continue
            kind = kind_of(path)
            known = {**(real[kind][0] if kind else {}), "slug": "not-found"}
            address = re.sub(r"\{(\w+)\}", lambda match, known=known: known[match[1]], path)
            with caplog.at_level(logging.ERROR):
                got, head = await client.get(address), await client.head(address)
            assert got.status_code < 400, (address, got.text)
            assert head.status_code == got.status_code, address
            assert head.content == b""
            assert head.headers.get("content-type") == got.headers.get("content-type"), address
            tried += 1
        assert tried > 30
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text


async def reads_to_its_end(address: tuple[str, int], sent: bytes) -> bytes:
    """What comes until the other side closes."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


KEY = f"Authorization: Bearer {BOOTSTRAP_KEY}\r\nHost: x\r\n".encode()
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"POST /v1/jobs HTTP/1.1\r\n" + KEY + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HT", WHOLE + b"GET /hea", BODY], ids=["nothing", "head", "second", "body"]
)
async def test_a_client_that_begins_and_goes_no_further_is_let_go(
    api: Api, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(kernel_copy, "PATIENCE", 0.2)
    async with served(api) as client:
        address = (client.base_url.host, client.base_url.port or 0)
        answered = await reads_to_its_end(address, sent)
        assert answered.startswith(b"HTTP/1.1 200") == sent.startswith(WHOLE)


async def test_a_slow_body_that_goes_on_is_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_copy, "PATIENCE", 0.5)
    upload = ok(await api.client.post("/v1/datasets/uploads", json={}), 201)["id"]
    async with served(api) as client:

        async def slowly() -> object:
            for _ in range(6):
                await asyncio.sleep(0.2)
                yield b"x"

        sent = await client.put(f"/v1/datasets/uploads/{upload}/parts/1", content=slowly())
        assert ok(sent)["bytes"] == 6


async def test_a_request_of_two_lengths_is_refused(api: Api) -> None:
    both = b"POST /v1/jobs HTTP/1.1\r\n" + KEY + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with served(api) as client:
        answered = await reads_to_its_end((client.base_url.host, client.base_url.port or 0), both)
    assert answered.startswith(b"HTTP/1.1 400")
    assert b"malformed-request" in answered
