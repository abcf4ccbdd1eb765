"""Which addresses a process may connect to: those of the internet, and none of the network that it stands in.

A wall for a whole process, because its HTTP client resolves names itself: Python tells its audit hooks of each
connection with the address that is meant, after the name was resolved. A hook cannot be taken away again.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import Any

from core.contract.webhook_url import is_public

EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg")


class NotPublic(OSError):
    """The address that somebody wanted to connect to is not public."""


class Wall:
    """``refused``: why a connection was refused; HTTP clients bury an exception under their own."""

    def __init__(self) -> None:
        self.refused: str | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else address
        try:
            is_allowed = is_public(ipaddress.ip_address(host))
        except ValueError:
            is_allowed = False  # a name, or a socket of this machine
        if not is_allowed:
            self.refused = f"{host} is not a public address"
            raise NotPublic(self.refused)


def only_public() -> Wall:
    """From now on this process connects to public addresses only."""
    wall = Wall()
    sys.addaudithook(wall)
    return wall
