"""A stock Hub client: ``huggingface_hub`` in a process of its own, with nothing of ours on its side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = ("quant_experts", "app", "worker", "demo", "tests")
CHECK = f"""
import sys as _sys
_ours = [name for name in _sys.modules if name.split(".")[0] in {OURS!r}]
assert not _ours, _ours
"""


@dataclass(frozen=True)
class HubClient:
    """``endpoint`` is what a user would set as ``HF_ENDPOINT``; ``home`` is empty at first."""

    endpoint: str
    token: str | None
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **inherited,
            "HOME": str(self.home),
            "HF_HOME": str(self.home / "huggingface"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            **({"HF_TOKEN": self.token} if self.token is not None else {}),
        }

    def python(self, source: str, **values: Any) -> Any:
        """Run ``source`` with ``values`` as its globals; what it leaves in ``answer`` comes back through JSON."""
        given = f"globals().update(__import__('json').loads({json.dumps(values)!r}))"
        script = "\n".join((given, textwrap.dedent(source), CHECK, "import json", "print(json.dumps(answer))"))
        return json.loads(self.run([sys.executable, "-P", "-c", script]).splitlines()[-1])

    def hf(self, *arguments: str) -> str:
        """The `hf` command."""
        return self.run([str(Path(sys.executable).with_name("hf")), *arguments])

    def run(self, command: list[str]) -> str:
        self.home.mkdir(exist_ok=True)
        done = subprocess.run(
            command, env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{command[:2]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout
