"""Where a local model is, and what tells it from another under the same name: it has no commit.

API and worker ask the same questions, so that a job made from a plan runs on the files that were planned or not at all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from quant_experts.spec.prefixes import LOCAL

SAMPLE_BYTES = 1 << 16
PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json")


class NoLocalModel(Exception):
    """There is no such directory; the message says why."""


def local_directory(model_id: str, root: Path | None) -> Path:
    """``local/<directory>`` → the directory directly below ``root``, links followed. Raises NoLocalModel."""
    name = model_id.removeprefix(LOCAL)
    if root is None:
        raise NoLocalModel("the service has no local models: QE_MODEL_ROOT is not set")
    below = root.resolve()
    directory = (below / name).resolve()
    if "/" in name or directory == below or not directory.is_relative_to(below) or not directory.is_dir():
        raise NoLocalModel(f"no directory {name!r} below the model root")
    return directory


def model_fingerprint(directory: Path) -> str:
    """A digest of configuration and index, and of each shard its size, header and samples.

    Not of all bytes: a plan must not cost a read of 145 GB. Raises OSError.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in PATTERNS for path in directory.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as reader:
            if path.suffix == ".json":
                digest.update(hashlib.file_digest(reader, "sha256").digest())
                continue
            for start in (0, size // 4, size // 2, size * 3 // 4, max(0, size - SAMPLE_BYTES)):
                reader.seek(start)
                digest.update(reader.read(SAMPLE_BYTES))
    return digest.hexdigest()
