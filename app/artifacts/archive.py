"""A job's files as one tar, without a temporary file: every byte is known before it is sent."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from datetime import datetime

from app.web.file_response import ObjectPart, Piece
from core.ledger.tables import Artifact

END = b"\0" * tarfile.RECORDSIZE


def archive_pieces(artifacts: Sequence[Artifact], *, folder: str, modified: datetime) -> list[Piece]:
    """The pieces of the tar, the same bytes at every call: any range can be requested."""
    pieces: list[Piece] = []
    for artifact in artifacts:
        pieces += [
            _header(artifact, folder, modified),
            ObjectPart(artifact.key, 0, artifact.bytes),
            b"\0" * (-artifact.bytes % tarfile.BLOCKSIZE),
        ]
    return [*pieces, END]


def archive_digest(artifacts: Sequence[Artifact], *, folder: str, modified: datetime) -> str:
    """A digest for the archive's ETag, computed without reading the files."""
    digest = hashlib.sha256()
    for artifact in artifacts:
        digest.update(_header(artifact, folder, modified))
        digest.update(bytes.fromhex(artifact.sha256))
    return digest.hexdigest()


def _header(artifact: Artifact, folder: str, modified: datetime) -> bytes:
    entry = tarfile.TarInfo(f"{folder}/{artifact.name}")
    entry.size = artifact.bytes
    entry.mtime = int(modified.timestamp())
    entry.mode = 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)
