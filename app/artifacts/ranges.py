"""Conditional and partial downloads of an immutable file (RFC 9110, sections 13 and 14): decisions only, no bytes."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

SPEC = re.compile(r"bytes=(\d*)-(\d*)", re.IGNORECASE)


@dataclass(frozen=True)
class Slice:
    """``length`` bytes from ``start``; ``partial`` when a range was asked for and holds."""

    start: int
    length: int
    partial: bool


class Unsatisfiable(Exception):
    """A well-formed range that lies outside the file."""


def etag(sha256: str) -> str:
    """A strong validator: the digest of the content is the content's name."""
    return f'"{sha256}"'


def repr_digest(sha256: str) -> str:
    """RFC 9530, section 3: of the whole file, whatever part is sent."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def not_modified(headers: Mapping[str, str], tag: str) -> bool:
    wanted = headers.get("if-none-match")
    return wanted is not None and _lists(wanted, tag, weak=True)


def precondition_failed(headers: Mapping[str, str], tag: str) -> bool:
    wanted = headers.get("if-match")
    return wanted is not None and not _lists(wanted, tag, weak=False)


def slice_of(headers: Mapping[str, str], tag: str, size: int) -> Slice:
    """Raises Unsatisfiable. Several ranges, other units and bad syntax are answered with the whole file, as allowed."""
    whole = Slice(start=0, length=size, partial=False)
    condition = headers.get("if-range")
    match = SPEC.fullmatch(headers.get("range", "").replace(" ", ""))
    if match is None or (condition is not None and condition.strip() != tag):
        return whole
    first, last = (int(digits[:19]) if digits else None for digits in match.groups())
    if first is None and last is None:
        return whole
    if first is None:
        assert last is not None
        if last == 0 or size == 0:
            raise Unsatisfiable
        start = max(0, size - last)
        return Slice(start=start, length=size - start, partial=True)
    if last is not None and last < first:
        return whole
    if first >= size:
        raise Unsatisfiable
    end = size if last is None else min(last + 1, size)
    return Slice(start=first, length=end - first, partial=True)


def _lists(value: str, tag: str, *, weak: bool) -> bool:
    if value.strip() == "*":
        return True
    entries = (entry.strip() for entry in value.split(","))
    return any(entry == tag or (weak and entry == f"W/{tag}") for entry in entries)
