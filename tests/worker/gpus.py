"""An nvidia-smi that answers for three GPUs as the real one does, on a machine that has none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GPUS = ["GPU-aaaa0000-1111", "GPU-bbbb0000-1111", "GPU-cccc0000-1111"]
PROGRAM = """#!/bin/sh
case "$1" in
    --query-gpu=uuid,memory.total,name) ;;
    *) exit 2 ;;
esac
for uuid in {uuids}; do echo "$uuid, 143771, NVIDIA H200"; done
"""


def fake_gpus(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the program first on PATH, and takes away what chooses among GPUs."""
    program = directory / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(uuids=" ".join(GPUS)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program
