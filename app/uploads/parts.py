"""The parts of an unfinished upload, as objects in storage whose names say what they hold."""

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
    """Another tenant's upload has another folder, whatever its id."""
    return f"{_folder_of_tenant(tenant)}/{upload_id}"


def _folder_of_tenant(tenant: str) -> str:
    return f"{PREFIX}/{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"


def bytes_of_tenant(storage: Storage, tenant: str) -> int:
    """Of all parts that wait to become datasets."""
    names = (key.rsplit("/", 1)[-1] for key in storage.keys(_folder_of_tenant(tenant)))
    return sum(int(match[2]) for match in map(NAME.fullmatch, names) if match)


def unfinished(storage: Storage, tenant: str) -> int:
    """How many uploads the tenant has begun and neither completed nor aborted."""
    return len({key.split("/")[2] for key in storage.keys(_folder_of_tenant(tenant))})


def begin(storage: Storage, folder: str, name: str | None, draft: Path) -> None:
    draft.write_text(json.dumps({"name": name}))
    storage.put(f"{folder}/{ABOUT}", draft)


def name_of(storage: Storage, folder: str) -> str | None:
    """What the client calls it. Raises ObjectMissing for an upload that is not there."""
    with storage.open(f"{folder}/{ABOUT}") as reader:
        name = json.loads(reader.read())["name"]
    return None if name is None else str(name)


def put(storage: Storage, folder: str, part: Part, source: Path) -> None:
    """Beside earlier versions of the part."""
    storage.put(f"{folder}/{part.name}", source)


def remove(storage: Storage, folder: str, part: Part) -> None:
    storage.delete(f"{folder}/{part.name}")


def remove_others(storage: Storage, folder: str, part: Part) -> int:
    """Earlier versions of the part; how many bytes they had."""
    others = [other for other in stored(storage, folder) if other.number == part.number and other != part]
    for other in others:
        remove(storage, folder, other)
    return sum(other.bytes for other in others)


def stored(storage: Storage, folder: str) -> list[Part]:
    """By number; a part that is just being replaced may be there in both versions."""
    names = (key.rsplit("/", 1)[-1] for key in storage.keys(folder))
    found = (NAME.fullmatch(name) for name in names)
    return sorted(
        (Part(int(match[1]), int(match[2]), match[3]) for match in found if match),
        key=lambda part: (part.number, part.sha256),
    )


def joined(storage: Storage, folder: str, parts: Sequence[Part], target: BinaryIO) -> str:
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
