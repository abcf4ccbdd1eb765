"""The tutorials do what they say: their blocks are run, in order, in one directory, against a real service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Site

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script_of(page: Path) -> str:
    """One bash script of a page's blocks; Python blocks run where they stand."""
    blocks = BLOCK.findall(page.read_text())
    assert blocks, f"{page.name} has no blocks"
    parts = ["set -euo pipefail"]
    for number, (language, code) in enumerate(blocks):
        end = f"END_OF_BLOCK_{number}"
        parts.append(code if language == "bash" else f"python - <<'{end}'\n{code}{end}")
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", sorted(DOCS.glob("tutorial*.md")), ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_stands(page: Path, site: Site, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(site.rows.read_bytes())
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "QE_URL": site.service.url,
        "QE_API_KEY": site.service.client.headers["Authorization"].removeprefix("Bearer "),
        "MODEL": "local/tiny",
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    done = subprocess.run(
        ["bash", "-c", script_of(page)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
