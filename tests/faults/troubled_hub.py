"""A hub in trouble: the fake hub of the library's tests with several commits, byte ranges, and faults to order.

``faults[name]`` is what happens to the next requests for ``name``: a file, or ``info`` (which commit a branch is at).
Each request takes one fault; without one it is answered as it should be.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from tests.quant_experts.test_hub import FakeHub, _oid

FIRST, SECOND = "1" * 40, "2" * 40
SHARD = 12_000_000
"""Bytes. The hub's client writes in pieces of 10 MiB, and goes on after the last whole one."""


@dataclass(frozen=True)
class Answer:
    """Another status than 200, with headers."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """The connection breaks after ``sent`` bytes of the file."""

    sent: int


@dataclass(frozen=True)
class Slow:
    """Nothing for ``seconds``, then the answer."""

    seconds: float


Fault = Answer | Cut | Slow


@dataclass
class Hub:
    """What the server knows and does; tests change it while it runs."""

    url: str = ""
    at: str = FIRST
    """The commit that the branch points to now."""
    repository: dict[str, dict[str, bytes]] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    ranges: list[str] = field(default_factory=list)
    """The ``Range`` headers that came."""
    asked: list[str] = field(default_factory=list)
    """Commit and name of every file that was asked for."""

    def order(self, name: str, *faults: Fault) -> None:
        self.faults[name].extend(faults)

    def fault(self, name: str) -> Fault | None:
        with contextlib.suppress(IndexError):
            return self.faults[name].popleft()
        return None


class TroubledHub(FakeHub):
    hub: Hub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/team/model(?:/revision/(\w+))?", path):
            self._info(match[1])
        elif match := re.fullmatch(r"/api/models/team/model/tree/(\w+).*", path):
            files = self.hub.repository[match[1]]
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": _oid(body)} for name, body in files.items()
            ]
            self._answer(200, json.dumps(tree).encode(), {})
        elif match := re.fullmatch(r"/team/model/resolve/(\w+)/(.+)", path):
            self._file(match[1], match[2])
        else:
            super().do_GET()

    def _info(self, revision: str | None) -> None:
        if isinstance(fault := self.hub.fault("info"), Answer):
            self._answer(fault.status, b"{}", fault.headers)
            return
        commit = revision if revision in self.hub.repository else self.hub.at
        files = [{"rfilename": name} for name in self.hub.repository[commit]]
        self._answer(200, json.dumps({"id": "team/model", "sha": commit, "siblings": files}).encode(), {})

    def _file(self, commit: str, name: str) -> None:
        content = self.hub.repository[commit][name]
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            self._answer(200, content, headers)
            return
        self.hub.asked.append(f"{commit[0]}/{name}")
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            self.hub.ranges.append(match[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        match self.hub.fault(name):
            case Answer(status=status, headers=extra):
                self._answer(status, b"{}", extra)
            case Cut(sent=sent):
                self.send_response(206 if start else 200)
                for header, value in {**headers, "Content-Length": str(len(content) - start)}.items():
                    self.send_header(header, value)
                self.end_headers()
                self.wfile.write(content[start : start + sent])
                self.close_connection = True
            case Slow(seconds=seconds):
                time.sleep(seconds)
                self._answer(200, content, headers)
            case None:
                self._answer(206 if start else 200, content[start:], headers)


@contextlib.contextmanager
def troubled_hub() -> Iterator[Hub]:
    """A running hub with two commits of ``team/model`` that differ in every file."""
    hub = Hub()
    for commit in (FIRST, SECOND):
        hub.repository[commit] = {
            "config.json": json.dumps({"model_type": "qwen2_vl", "commit": commit}).encode(),
            "model.safetensors": commit.encode() * (SHARD // 40 if commit == FIRST else 1),
            "tail.safetensors": commit.encode(),
        }
    handler = type("Handler", (TroubledHub,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
