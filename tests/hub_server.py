"""The writing side of the Hub protocol on this machine, for the real ``huggingface_hub``.

What a push needs and no more. Content that was uploaded is kept by its SHA-256, and refused when it has another.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

MOST_REGULAR = 1000
"""Files of more bytes go through LFS; the hub's own bound is larger."""
COMMIT = "%040x"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def sha(self) -> str:
        return COMMIT % len(self.commits)


@dataclass
class HubServer:
    """``answers``: (part of a path, status) that the next request with it gets. ``gate``: closed, uploads wait."""

    token: str = "hf_of_the_tenant"
    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    """SHA-256 of each upload, in their order."""
    answers: list[tuple[str, int]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Event = field(default_factory=threading.Event)
    """Set when an upload is at the gate."""


def _info(name: str, repository: Repository) -> dict[str, Any]:
    return {"_id": name, "id": name, "modelId": name, "private": repository.private, "sha": repository.sha}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, *_: Any) -> None:
        """The tests look at what is there."""

    def _answer(self, method: str) -> None:
        body = self._body()
        path = self.path.partition("?")[0].strip("/")
        for number, (part, status) in enumerate(self.hub.answers):
            if part in path:
                del self.hub.answers[number]
                return self._send(status, {"error": "as the test wants it"})
        if method == "PUT":
            return self._upload(path.rpartition("/")[2], body)
        if self.headers["Authorization"] != f"Bearer {self.hub.token}":
            return self._send(401, {"error": "no token"})
        return self._api(method, path.split("/"), body)

    def _api(self, method: str, parts: list[str], body: bytes) -> None:
        match parts:
            case ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case ["api", "validate-yaml"]:
                return self._send(200, {"errors": [], "warnings": []})
            case [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                return self._batch(f"{owner}/{name.removesuffix('.git')}", json.loads(body))
            case ["api", "models", owner, name, *rest]:
                repository = self.hub.repositories.get(f"{owner}/{name}")
                if repository is None:
                    return self._send(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
                match rest:
                    case [] | ["revision", _]:
                        return self._send(200, _info(f"{owner}/{name}", repository))
                    case ["paths-info", _]:
                        return self._paths(repository, body)
                    case ["preupload", _]:
                        return self._preupload(repository, json.loads(body))
                    case ["commit", _]:
                        return self._commit(f"{owner}/{name}", repository, body)
        return self._send(404, {"error": f"{method} {self.path}"})

    def _create(self, new: dict[str, Any]) -> None:
        name = f"{new['organization']}/{new['name']}"
        if name in self.hub.repositories:
            return self._send(409, {"error": "it exists"})
        private = new.get("private", new.get("visibility") == "private")
        self.hub.repositories[name] = Repository(private=bool(private))
        return self._send(200, {"url": f"{self.hub.endpoint}/{name}"})

    def _paths(self, repository: Repository, body: bytes) -> None:
        paths = parse_qs(body.decode())["paths"]
        found = [(path, repository.files[path]) for path in paths if path in repository.files]
        entries = []
        for path, content in found:
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git(content)}
            if path in repository.large:
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return self._send(200, entries)

    def _preupload(self, repository: Repository, given: dict[str, Any]) -> None:
        files = []
        for each in given["files"]:
            path, is_large = each["path"], each["size"] > MOST_REGULAR
            content = repository.files.get(path)
            oid = None if content is None else hashlib.sha256(content).hexdigest() if is_large else _git(content)
            mode = "lfs" if is_large else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self._send(200, {"files": files})

    def _batch(self, name: str, given: dict[str, Any]) -> None:
        objects = []
        for each in given["objects"]:
            entry = dict(each)
            if each["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/upload/{name}/{each['oid']}"}}
            objects.append(entry)
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _upload(self, oid: str, body: bytes) -> None:
        self.hub.arrived.set()
        self.hub.gate.wait(60)
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(422, {"error": "another digest"})
        self.hub.blobs[oid] = body
        self.hub.uploads.append(oid)
        return self._send(200, {})

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        assert lines[0]["key"] == "header"
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.blobs[value["oid"]]
                repository.large.add(value["path"])
            else:
                repository.files[value["path"]] = base64.b64decode(value["content"])
        repository.commits.append(lines[0]["value"]["summary"])
        url = f"{self.hub.endpoint}/{name}/commit/{repository.sha}"
        return self._send(200, {"success": True, "commitOid": repository.sha, "commitUrl": url})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def serving() -> Iterator[HubServer]:
    """A hub on a free port of 127.0.0.1, without repositories."""
    hub = HubServer()
    hub.gate.set()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
