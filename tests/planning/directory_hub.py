"""A hub that serves model directories by ranges; it can stall, and it can ignore ranges."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.quant_experts.test_hub import COMMIT, FakeHub


@dataclass
class DirectoryHub:
    """``repositories``: ``models/owner/name`` → its files. ``sent``: bytes of bodies so far; ``tokens``: that came."""

    repositories: dict[str, Path]
    url: str = ""
    sent: int = 0
    requests: int = 0
    tokens: set[str | None] = field(default_factory=set)
    knows_ranges: bool = True
    stalled: threading.Event = field(default_factory=threading.Event)
    """While set, nothing is answered."""
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def directory_hub(**repositories: Path) -> Iterator[DirectoryHub]:
    """Keys are ``models/owner/name`` or ``datasets/owner/name``."""
    hub = DirectoryHub(dict(repositories))

    class Handler(FakeHub):
        def do_GET(self) -> None:
            while hub.stalled.is_set() and not hub.over.wait(0.02):
                pass
            hub.requests += 1
            hub.tokens.add(self.headers.get("Authorization"))
            path = self.path.split("?")[0]
            about = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/revision/([^/]+))?", path)
            content = re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path)
            if about and about[1] in hub.repositories and about[2] != "gone":
                names = [{"rfilename": file.name} for file in sorted(hub.repositories[about[1]].iterdir())]
                self._answer(200, json.dumps({"id": about[1], "sha": COMMIT, "siblings": names}).encode(), {})
            elif content and f"models/{content[1]}" in hub.repositories:
                self._send_file(hub.repositories[f"models/{content[1]}"] / content[2])
            else:
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound" if about and about[2] else "RepoNotFound"})

        def _send_file(self, path: Path) -> None:
            size = path.stat().st_size
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, end = (int(match[1]), min(int(match[2]) + 1, size)) if match and hub.knows_ranges else (0, size)
            self.send_response(206 if match and hub.knows_ranges else 200)
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            with path.open("rb") as reader:
                reader.seek(start)
                while start < end:
                    chunk = reader.read(min(1 << 16, end - start))
                    try:
                        self.wfile.write(chunk)
                    except OSError:  # the client has what it wanted
                        return
                    hub.sent += len(chunk)
                    start += len(chunk)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            hub.over.set()
            server.shutdown()
