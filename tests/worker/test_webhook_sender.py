"""The sender reaches addresses of the internet only, whatever a name says; it never waits, follows or reads long."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from core.contract.webhook_url import Address
from tests.worker.endpoint import OK, certificate_for, listening
from worker.webhooks.sender import NotDelivered, Policy, post, signature, signed_headers

HERE = Policy(allow_http=True, allow_private=True, seconds=5)
NAME = "hooks.example.com"


def always(*addresses: str) -> Callable[[str, int], Awaitable[Sequence[Address]]]:
    async def resolve(host: str, port: int) -> Sequence[Address]:
        return [ipaddress.ip_address(address) for address in addresses]

    return resolve


async def send(url: str, policy: Policy = HERE, *addresses: str, **headers: str) -> int:
    return await post(url, headers=headers, body=b"{}", policy=policy, resolve=always(*(addresses or ("127.0.0.1",))))


async def test_the_official_library_accepts_our_signatures() -> None:
    old, new = ("whsec_" + base64.b64encode(os.urandom(32)).decode() for _ in range(2))
    body = json.dumps({"type": "job.succeeded", "data": {"name": "größer"}}, ensure_ascii=False).encode()
    headers = signed_headers([new, old], message_id="evt_1_2", timestamp=int(time.time()), body=body)
    for secret in (old, new):
        assert Webhook(secret).verify(body, headers) == json.loads(body)
    for change in ({"webhook-id": "evt_1_3"}, {"webhook-timestamp": "1"}, {"webhook-signature": "v1,AAAA"}):
        with pytest.raises(Exception):  # noqa: B017 -- the library's errors share no base
            Webhook(new).verify(body, {**headers, **change})


def test_a_signature_is_the_one_of_the_specification() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    theirs = Webhook(secret).sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.datetime.fromtimestamp(1614265330, datetime.UTC),
        '{"test": 2432232314}',
    )
    ours = signature(
        secret, message_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=b'{"test": 2432232314}'
    )
    assert ours == theirs == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_with_tls_the_name_is_what_counts_and_the_address_is_the_one_that_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificate_for(NAME, tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with listening(certificate) as endpoint:
        url = f"https://{NAME}:{endpoint.port}/in?x=1"
        assert await send(url, HERE, "127.0.0.1", **{"webhook-id": "evt_1"}) == 200
        assert endpoint.names == [NAME]
        assert endpoint.headers()["host"] == f"{NAME}:{endpoint.port}"
        assert endpoint.headers()["webhook-id"] == "evt_1"
        assert endpoint.requests[0].startswith(b"POST /in?x=1 HTTP/1.1\r\n")
        with pytest.raises(NotDelivered, match="certificate"):  # of another name
            await send(url.replace(NAME, "other.example.com"))
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(NotDelivered, match="certificate"):  # of an unknown authority
            await send(url)
        assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"],
        ["fd00::1"],
        ["93.184.216.34", "127.0.0.1"], ["127.0.0.1", "93.184.216.34"],
    ],
)  # fmt: skip
async def test_a_name_with_any_address_that_is_not_public_is_not_connected_to(addresses: list[str]) -> None:
    async with listening() as endpoint:
        policy = Policy(allow_http=True, allow_private=False, seconds=5)
        with pytest.raises(NotDelivered, match="not a public address"):
            await send(f"http://{NAME}:{endpoint.port}/", policy, *addresses)
        assert endpoint.connections == 0


async def test_a_name_that_is_bound_again_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS that says a public address when it is judged and ours a moment later: there is no second question."""
    said = ["93.184.216.34", "127.0.0.1", "127.0.0.1"]
    connected: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[Address]:
        return [ipaddress.ip_address(said.pop(0))]

    async def unreachable(host: str, port: int, **options: Any) -> Any:
        connected.append(host)
        raise ConnectionRefusedError

    policy = Policy(seconds=5)
    monkeypatch.setattr(asyncio, "open_connection", unreachable)
    with pytest.raises(NotDelivered, match="no connection"):
        await post(f"https://{NAME}/", headers={}, body=b"{}", policy=policy, resolve=rebinding)
    assert (connected, len(said)) == (["93.184.216.34"], 2)
    with pytest.raises(NotDelivered, match="not a public address"):
        await post(f"https://{NAME}/", headers={}, body=b"{}", policy=policy, resolve=rebinding)
    assert connected == ["93.184.216.34"]


async def test_a_url_that_is_no_longer_allowed_is_refused_when_it_is_sent_to() -> None:
    for url in ("http://93.184.216.34/", "https://127.0.0.1/", "https://[::1]/", "https://localhost/"):
        with pytest.raises(NotDelivered, match="refused"):
            await post(url, headers={}, body=b"{}", policy=Policy(), resolve=always("93.184.216.34"))


async def test_a_redirect_is_an_answer_like_any_other_and_is_not_followed() -> None:
    async with listening() as target, listening() as endpoint:
        location = f"http://127.0.0.1:{target.port}/"
        endpoint.answers = [f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()]
        assert await send(f"http://{NAME}:{endpoint.port}/") == 302
        assert target.connections == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "no answer within"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, "more than|not an HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, "more than|not an HTTP answer"),
        (b"HTTP/1.1 200 " + b"x" * 100_000, "more than|not an HTTP answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not an HTTP answer"),
        (b"\x00" * 100, "not an HTTP answer|closed"),
    ],
)
async def test_an_endpoint_that_does_not_answer_properly_costs_little(answer: bytes, reason: str) -> None:
    policy = Policy(allow_http=True, allow_private=True, seconds=0.5 if not answer else 10)
    async with listening(answers=[answer]) as endpoint:
        with pytest.raises(NotDelivered, match=reason):
            await send(f"http://{NAME}:{endpoint.port}/", policy)


async def test_an_endless_body_is_not_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with listening(answers=[head + b"fffff\r\n" + b"x" * 5_000_000]) as endpoint:
        assert await send(f"http://{NAME}:{endpoint.port}/") == 200


async def test_an_address_that_takes_no_connection_gives_way_to_the_next() -> None:
    async with listening(answers=[OK]) as endpoint:
        assert await send(f"http://{NAME}:{endpoint.port}/", HERE, "127.0.0.2", "127.0.0.1") == 200


async def test_a_name_without_an_address_is_said() -> None:
    with pytest.raises(NotDelivered, match="has no address"):
        await post("https://nothing.invalid/", headers={}, body=b"{}", policy=Policy())
