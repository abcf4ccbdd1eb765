"""An environment of its own for each peer, beside the same torch."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

import torch


def install(directory: Path, name: str, packages: Sequence[str]) -> Path:
    """The environment's interpreter; made and filled if it is not there. No other torch than ours gets in."""
    python = directory / name / "bin" / "python"
    done = directory / name / ".installed"
    if done.is_file():
        return python
    venv.create(directory / name, with_pip=True, clear=True)
    wanted = f"torch=={torch.__version__.partition('+')[0]}"
    constraints = directory / "constraints.txt"
    constraints.write_text(wanted + "\n", encoding="utf-8")
    for batch in ([wanted], packages):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), *batch], check=True)
    done.touch()
    return python
