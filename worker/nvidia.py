"""What nvidia-smi reports about the GPUs of this machine."""

from __future__ import annotations

import shutil
import subprocess


def ask_gpus(what: str, *, uuid: str | None = None) -> list[str]:
    """One answer per GPU, or of that with ``uuid``; none where there is no GPU or nvidia-smi fails."""
    try:
        return query_gpus(what, uuid)
    except (OSError, subprocess.SubprocessError):
        return []


def query_gpus(what: str, uuid: str | None = None) -> list[str]:
    """Raises OSError and SubprocessError."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(  # noqa: S603 -- a fixed command
        [*command, f"--id={uuid}"] if uuid else command, capture_output=True, text=True, timeout=20, check=True
    )
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
