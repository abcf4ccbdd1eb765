"""A job's files as one tar, made while it is sent: no temporary file, and its length is known beforehand."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from app.artifacts.content import read_object
from app.contract.tables import Artifact
from app.storage import Storage

END = b"\0" * tarfile.RECORDSIZE


def archive_length(artifacts: Sequence[Artifact], *, folder: str, modified: datetime) -> int:
    return len(END) + sum(
        len(_header(artifact, folder, modified)) + artifact.bytes + _padding(artifact.bytes) for artifact in artifacts
    )


async def archive_content(
    storage: Storage, artifacts: Sequence[Artifact], *, folder: str, modified: datetime
) -> AsyncIterator[bytes]:
    for artifact in artifacts:
        yield _header(artifact, folder, modified)
        async for chunk in read_object(storage, artifact.key, start=0, length=artifact.bytes):
            yield chunk
        yield b"\0" * _padding(artifact.bytes)
    yield END


def _header(artifact: Artifact, folder: str, modified: datetime) -> bytes:
    entry = tarfile.TarInfo(f"{folder}/{artifact.name}")
    entry.size = artifact.bytes
    entry.mtime = int(modified.timestamp())
    entry.mode = 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
