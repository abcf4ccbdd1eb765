"""Which URLs a webhook may have, and to which addresses one may be sent: nothing of the network we stand in.

A URL is read once, strictly, and only what was read is used: what a lenient reader would take for a host
(``2130706433``, ``0x7f.1``, ``good.example@10.0.0.1``, digits of another script) is refused, not interpreted. Names are
resolved when a message is sent and each address is judged then; this module resolves nothing.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MOST_CHARACTERS = 2000
VISIBLE = re.compile(r"[\x21-\x7e]+")
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
INTERNAL = ("localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp", "private", "arpa")
"""Last labels that mean this machine or a network of one's own (RFC 6761, 6762, 8375, 9476)."""
LEAST_PORT = 1024
PORTS = {"https": 443, "http": 80}
GLOBAL6 = ipaddress.IPv6Network("2000::/3")
TUNNELS = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
"""Protocol assignments with Teredo, documentation, 6to4: inside an address of these may stand another one."""


class BadUrl(ValueError):
    """Why a webhook cannot have this URL."""


@dataclass(frozen=True)
class Target:
    """A URL as it was read. ``host`` is a name in lower case, or an address without brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the ``Host`` field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def read_url(url: str, *, allow_http: bool = False, allow_private: bool = False) -> Target:
    """Raises BadUrl. The two permissions are for development: plain HTTP, and this machine or its networks."""
    if len(url) > MOST_CHARACTERS:
        raise BadUrl(f"at most {MOST_CHARACTERS} characters")
    if VISIBLE.fullmatch(url) is None or "\\" in url:
        raise BadUrl("only visible ASCII without backslashes: write the host in punycode, escape the rest")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadUrl(f"not a URL: {error}") from None
    if parts.scheme not in (("https", "http") if allow_http else ("https",)):
        raise BadUrl("https://… is needed")
    if parts.username is not None or parts.password is not None:
        raise BadUrl("no user or password: receivers check the signature")
    if parts.fragment or url.endswith("#"):
        raise BadUrl("no fragment: it would not be sent")
    port = PORTS[parts.scheme] if port is None else port
    if port != PORTS[parts.scheme] and port < LEAST_PORT:
        raise BadUrl(f"port {port}: {PORTS[parts.scheme]}, or {LEAST_PORT} and above")
    host = _host(parts.netloc, allow_private=allow_private)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme=parts.scheme, host=host, port=port, path=path)


def is_public(address: Address) -> bool:
    """Whether the address belongs to the internet and to nothing else, and carries no other address inside."""
    if isinstance(address, ipaddress.IPv6Address) and (
        address not in GLOBAL6 or any(address in network for network in TUNNELS)
    ):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _host(netloc: str, *, allow_private: bool) -> str:
    if netloc.startswith("["):
        literal, bracket, after = netloc[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise BadUrl(f"not a host: {netloc!r}")
        return str(_allowed(_address(literal), allow_private))
    host = netloc.partition(":")[0].lower()
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise BadUrl(f"not a host name: {host!r}")
    if NUMBER.fullmatch(labels[-1]):  # what browsers and inet_aton take for an IPv4 address, in whatever notation
        return str(_allowed(_address(host), allow_private))
    if not allow_private and (len(labels) == 1 or labels[-1] in INTERNAL):
        raise BadUrl(f"{host!r} is a name of a local network")
    return ".".join(labels)


def _address(literal: str) -> Address:
    try:
        address = ipaddress.ip_address(literal)
    except ValueError:
        raise BadUrl(f"not an address: {literal!r}; four decimal numbers, or IPv6 in brackets") from None
    if getattr(address, "scope_id", None) is not None:
        raise BadUrl("an address with a zone is a local one")
    return address


def _allowed(address: Address, allow_private: bool) -> Address:
    if not allow_private and not is_public(address):
        raise BadUrl(f"{address} is not a public address")
    return address
