"""The hub lies outside the machine, so a small server speaks its protocol here; the client is the real one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    "model.safetensors": b"weights",
    "modeling_evil.py": b"raise SystemExit('code from a model repository ran')",
    "pytorch_model.bin": b"pickle",
    "onnx/model.safetensors": b"a second copy",
}


class FakeHub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/team/model/revision/gone"):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/api/models/team/model/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": _oid(body)} for name, body in FILES.items()
            ]
            self._answer(200, json.dumps(tree).encode(), {})
        elif path.startswith("/api/models/team/model"):
            files = [{"rfilename": name} for name in FILES]
            self._answer(200, json.dumps({"id": "team/model", "sha": COMMIT, "siblings": files}).encode(), {})
        elif path.startswith("/api/models/team/gated"):
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/team/broken"):
            self._answer(503, b"{}", {})
        elif path.startswith(f"/team/model/resolve/{COMMIT}/"):
            content = FILES[path.removeprefix(f"/team/model/resolve/{COMMIT}/")]
            self._answer(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def _oid(content: bytes) -> str:
    """Git's name of a blob, which the hub gives as ETag of small files."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(hub: str, repository: str, target: Path, *options: str) -> tuple[int, list[dict[str, str]]]:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(target.parent / "hf"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "quant_experts.model.hub", "model", repository, "--to", str(target), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_is_fetched_at_the_commit_that_its_branch_points_to(hub: str, tmp_path: Path) -> None:
    code, lines = fetch(hub, "team/model", tmp_path / "model")
    assert (code, lines[0]) == (0, {"type": "resolved", "commit": COMMIT})
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"weights"


def test_code_pickles_and_second_copies_stay_on_the_hub(hub: str, tmp_path: Path) -> None:
    fetch(hub, "team/model", tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").rglob("*") if path.is_file() and ".cache" not in path.parts}
    assert files == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("repository", "options", "code", "named"),
    [
        ("team/absent", (), "model_not_found", "team/absent"),
        ("team/model", ("--revision", "gone"), "model_not_found", "gone"),
        ("team/gated", (), "model_not_found", "gated"),
        ("team/broken", (), "model_unavailable", "try again"),
    ],
)
def test_each_refusal_has_its_code(
    hub: str, tmp_path: Path, repository: str, options: tuple[str, ...], code: str, named: str
) -> None:
    status, lines = fetch(hub, repository, tmp_path / "model", *options)
    assert status == 1
    assert lines[-1]["type"] == "error"
    assert lines[-1]["code"] == code
    assert named in lines[-1]["message"]


def test_a_hub_out_of_reach_is_worth_a_retry(tmp_path: Path) -> None:
    status, lines = fetch("http://127.0.0.1:9", "team/model", tmp_path / "model")
    assert (status, lines[-1]["code"]) == (1, "model_unavailable")
