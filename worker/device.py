"""What this machine computes on, told without loading torch."""

from __future__ import annotations

import shutil
import subprocess


def describe() -> str:
    """Names of the NVIDIA GPUs, or ``cpu``."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "cpu"
    try:
        answer = subprocess.run(  # noqa: S603 -- a fixed command
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "cpu"
    names = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return ", ".join(names) or "cpu"
