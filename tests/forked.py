"""The loading check of a run, in a process that is forked for it instead of started: 0.3 seconds instead of 4."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import preloaded


class ForkedProcesses:
    """``ask`` is one for ``verify_in_fresh_process``. A context manager."""

    def __enter__(self) -> ForkedProcesses:
        self._scratch = tempfile.TemporaryDirectory(prefix="qe-loading-")
        # Here, so that tests of the API, which have this among their fixtures, load nothing that computes.
        from quant_experts.checkpoint import fresh_process
        from quant_experts.checkpoint.verify import fresh_environment

        environment = os.environ | fresh_environment(Path(self._scratch.name))
        command = [sys.executable, "-I", str(preloaded.__file__), str(fresh_process.__file__)]
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.communicate()
        self._scratch.cleanup()

    def ask(self, directory: Path, probe: Path, device: str) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([str(directory.resolve()), str(probe), device]) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        if "failed" in answer:
            from quant_experts.checkpoint.verify import loading_failed

            raise loading_failed(directory, answer["failed"])
        return answer
