"""The parts of an unfinished upload: objects in storage, with number, size and digest in their names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from core.contract.uploads import PREFIX
from core.storage import Storage

ABOUT = "about.json"
NAME = re.compile(r"p(\d{5})-(\d{1,19})-([0-9a-f]{64})")
CHUNK = 1 << 20


@dataclass(frozen=True)
class Part:
    number: int
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return f"p{self.number:05}-{self.bytes}-{self.sha256}"


class TwoVersions(Exception):
    """A part was sent twice at the same time, with different bytes."""

    def __init__(self, number: int) -> None:
        super().__init__(f"part {number} was sent twice at once with different bytes: send it again")


def folder_of(tenant: str, upload_id: str) -> str:
    """The folder of an upload. It depends on the tenant, so tenants cannot reach each other's uploads."""
    return f"{_folder_of_tenant(tenant)}/{upload_id}"


def _folder_of_tenant(tenant: str) -> str:
    return f"{PREFIX}/{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"


def bytes_of_tenant(storage: Storage, tenant: str) -> int:
    """Bytes of all parts of unfinished uploads."""
    names = (key.rsplit("/", 1)[-1] for key in storage.keys(_folder_of_tenant(tenant)))
    return sum(int(match[2]) for match in map(NAME.fullmatch, names) if match)


def unfinished(storage: Storage, tenant: str) -> int:
    """Number of the tenant's uploads that are neither completed nor aborted."""
    return len({key.split("/")[2] for key in storage.keys(_folder_of_tenant(tenant))})


def begin(storage: Storage, folder: str, name: str | None, scratch_file: Path) -> None:
    scratch_file.write_text(json.dumps({"name": name}))
    storage.put(f"{folder}/{ABOUT}", scratch_file)


def name_of(storage: Storage, folder: str) -> str | None:
    """The name of the upload. Raises ObjectMissing for an unknown upload."""
    with storage.open(f"{folder}/{ABOUT}") as reader:
        name = json.loads(reader.read())["name"]
    return None if name is None else str(name)


def put(storage: Storage, folder: str, part: Part, source: Path) -> None:
    """Store the part beside earlier versions of it."""
    storage.put(f"{folder}/{part.name}", source)


def remove(storage: Storage, folder: str, part: Part) -> None:
    storage.delete(f"{folder}/{part.name}")


def remove_others(storage: Storage, folder: str, part: Part) -> int:
    """Remove other versions of the part; returns their bytes."""
    others = [other for other in stored_parts(storage, folder) if other.number == part.number and other != part]
    for other in others:
        remove(storage, folder, other)
    return sum(other.bytes for other in others)


def stored_parts(storage: Storage, folder: str) -> list[Part]:
    """Stored parts by number. A part that is being replaced may appear twice."""
    names = (key.rsplit("/", 1)[-1] for key in storage.keys(folder))
    matches = (NAME.fullmatch(name) for name in names)
    return sorted(
        (Part(int(match[1]), int(match[2]), match[3]) for match in matches if match),
        key=lambda part: (part.number, part.sha256),
    )


def concatenate(storage: Storage, folder: str, parts: Sequence[Part], target: BinaryIO) -> str:
    """Write the parts one after another; returns the SHA-256 of the whole. Raises TwoVersions or ObjectMissing."""
    digest = hashlib.sha256()
    for before, part in zip([None, *parts], parts, strict=False):
        if before is not None and before.number == part.number:
            raise TwoVersions(part.number)
        with storage.open(f"{folder}/{part.name}") as reader:
            while chunk := reader.read(CHUNK):
                digest.update(chunk)
                target.write(chunk)
    return digest.hexdigest()
