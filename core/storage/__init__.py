"""Where datasets, block files and artifacts live: one small protocol, one module per kind of store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.storage.local import LocalStorage
from core.storage.protocol import CHUNK, SEGMENT, ObjectMissing, Presentation, Storage, StorageUnavailable

__all__ = [
    "CHUNK",
    "SEGMENT",
    "LocalStorage",
    "ObjectMissing",
    "Presentation",
    "Storage",
    "StorageUnavailable",
    "storage_from_url",
]


def storage_from_url(url: str) -> Storage:
    """``file:///var/lib/qe/storage`` or ``s3://bucket/prefix?…`` → the store. Raises ValueError for what is neither."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc == "" and not parts.query:
        return LocalStorage(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        from core.storage.s3 import s3_from_url  # boto3 takes half a second and is only there for those who use it

        return s3_from_url(url)
    raise ValueError(f"QE_STORAGE_URL {url!r}: file:///absolute/directory or s3://bucket/prefix is supported")
