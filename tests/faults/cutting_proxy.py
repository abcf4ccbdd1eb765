"""Between a client and PostgreSQL: breaks a connection in the moment of COMMIT, before or after the server heard it.

Either way the client cannot know whether its transaction is in. ``order`` says what happens to the next commits:
``before``, ``after`` or ``pass``; without an order all pass.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit, urlunsplit

SOCKET = ".s.PGSQL.5432"
Cut = Literal["before", "after", "pass"]


@dataclass
class CuttingProxy:
    url: str
    """The database, through the proxy."""
    order: deque[Cut] = field(default_factory=deque)
    cuts: list[Cut] = field(default_factory=list)
    """What was done so far."""

    def next_commit(self) -> Cut:
        with contextlib.suppress(IndexError):
            self.cuts.append(self.order.popleft())
            return self.cuts[-1]
        return "pass"

    def carry(self, client: socket.socket, target: str) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(target)
            deaf = False
            while True:
                readable, _, _ = select.select([client, server], [], [])
                if server in readable:
                    data = server.recv(1 << 16)
                    if deaf or not data:
                        return
                    client.sendall(data)
                if client in readable:
                    data = client.recv(1 << 16)
                    if not data:
                        return
                    if b"COMMIT" in data:
                        match self.next_commit():
                            case "before":
                                return
                            case "after":
                                deaf = True
                    server.sendall(data)


@contextlib.contextmanager
def cutting_proxy(database_url: str, directory: Path) -> Iterator[CuttingProxy]:
    parts = urlsplit(database_url)
    target = parts.query.removeprefix("host=")
    proxy = CuttingProxy(urlunsplit(parts._replace(query=f"host={quote(str(directory), safe='/')}")))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / SOCKET))
        listener.listen(64)
        threading.Thread(target=_accept, args=(listener, proxy, f"{target}/{SOCKET}"), daemon=True).start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, proxy: CuttingProxy, target: str) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=proxy.carry, args=(client, target), daemon=True).start()
