"""What tells a local model from another under the same name: it has no commit.

API and worker ask the same question, so that a job made from a plan runs on the files that were planned, or not at all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLE_BYTES = 1 << 16
PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json")


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
