"""One signed POST to an address on the internet, and nothing else (Standard Webhooks 1.0).

The name is resolved here and now, every address it has is judged, and the connection goes to one that was judged: a
name that points somewhere else a moment later gains nothing. No redirects, no proxies, no body read back; one deadline
for all of it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import h11

from core.contract.webhook_url import Address, BadUrl, Target, is_public, read_url

MOST_ANSWER_BYTES = 16 * 1024
"""Bytes of status line and header fields; the body is not read."""
READ_BYTES = 4096
USER_AGENT = "quant-experts-webhooks/1"
SECRET_PREFIX = "whsec_"  # noqa: S105 -- the form, not a secret

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class NotDelivered(Exception):
    """Why no answer came; shown to the webhook's owner."""


@dataclass(frozen=True)
class Policy:
    """What may be sent where. The permissions are for development."""

    allow_http: bool = False
    allow_private: bool = False
    seconds: float = 15.0


def signature(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """``v1,…``: HMAC-SHA256 over id, timestamp and body, under the bytes that ``secret`` (``whsec_…``) encodes."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def signed_headers(secrets: Sequence[str], *, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """While two secrets live, both sign: the receiver may know either."""
    signatures = [signature(secret, message_id=message_id, timestamp=timestamp, body=body) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Every address of ``host``. Raises OSError."""
    entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries))


async def post(url: str, *, headers: Mapping[str, str], body: bytes, policy: Policy, resolve: Resolve = resolve) -> int:
    """The status of the answer. Raises NotDelivered."""
    try:
        async with asyncio.timeout(policy.seconds):
            target = read_url(url, allow_http=policy.allow_http, allow_private=policy.allow_private)
            addresses = await _judged(target, policy, resolve)
            return await _exchange(target, addresses, headers, body)
    except TimeoutError:
        raise NotDelivered(f"no answer within {policy.seconds:g} s") from None
    except BadUrl as error:
        raise NotDelivered(f"the URL is refused: {error}") from None
    except ssl.SSLCertVerificationError as error:
        raise NotDelivered(f"the certificate is not valid: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise NotDelivered(f"no TLS connection: {error.reason}") from None
    except OSError as error:
        raise NotDelivered(f"no connection: {error.strerror or type(error).__name__}") from None
    except h11.RemoteProtocolError as error:
        raise NotDelivered(f"not an HTTP answer: {error}") from None


async def _judged(target: Target, policy: Policy, resolve: Resolve) -> Sequence[Address]:
    try:
        addresses = await resolve(target.host, target.port)
    except OSError as error:
        raise NotDelivered(f"{target.host} has no address: {error.strerror or error}") from None
    for address in addresses:
        # One that is not public refuses all: which of them would be used is not for the name's owner to choose.
        if not policy.allow_private and not is_public(address):
            raise NotDelivered(f"{target.host} points to {address}, which is not a public address")
    return addresses


async def _exchange(target: Target, addresses: Sequence[Address], headers: Mapping[str, str], body: bytes) -> int:
    reader, writer = await _connect(target, addresses)
    try:
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_ANSWER_BYTES)
        fields = {
            "host": target.authority,
            "user-agent": USER_AGENT,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **headers,
        }
        request = h11.Request(method="POST", target=target.path, headers=list(fields.items()))
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(http.send(event) or b"")
        await writer.drain()
        return await _status(http, reader)
    finally:
        writer.transport.abort()


async def _connect(target: Target, addresses: Sequence[Address]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of the addresses that takes it. TLS and HTTP use the name, not the address."""
    secure = target.scheme == "https"
    context = ssl.create_default_context() if secure else None
    for number, address in enumerate(addresses, 1):
        try:
            return await asyncio.open_connection(
                str(address),
                target.port,
                ssl=context,
                server_hostname=target.host if secure else None,
                limit=MOST_ANSWER_BYTES,
            )
        except OSError as error:
            if number == len(addresses) or isinstance(error, ssl.SSLError):
                raise
    raise NotDelivered(f"{target.host} has no address")


async def _status(http: h11.Connection, reader: asyncio.StreamReader) -> int:
    size = 0
    while True:
        event = http.next_event()
        if isinstance(event, h11.Response):
            return event.status_code
        if event is h11.NEED_DATA:
            data = await reader.read(READ_BYTES)
            size += len(data)
            if size > MOST_ANSWER_BYTES:
                raise NotDelivered(f"more than {MOST_ANSWER_BYTES} bytes before the body")
            http.receive_data(data)
        elif isinstance(event, h11.ConnectionClosed):
            raise NotDelivered("the connection was closed without an answer")
