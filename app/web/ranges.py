"""Conditional and partial responses of an immutable file (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request, Response

from app.web import problems
from app.web.file_response import Piece, PiecesResponse, cut, length_of
from app.web.problems import Problem
from core.storage import Storage

FOREVER = "private, max-age=31536000, immutable"
SPEC = re.compile(r"bytes=(\d*)-(\d*)", re.IGNORECASE)


@dataclass(frozen=True)
class Slice:
    """``length`` bytes from ``start``. ``partial``: the request has a valid range."""

    start: int
    length: int
    partial: bool


class Unsatisfiable(Exception):
    """A well-formed range that lies outside the file."""


def etag(sha256: str) -> str:
    """A strong validator: the digest of the content."""
    return f'"{sha256}"'


def repr_digest(sha256: str) -> str:
    """``Repr-Digest`` of the whole file, for any range (RFC 9530, section 3)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def not_modified(headers: Mapping[str, str], tag: str) -> bool:
    condition = headers.get("if-none-match")
    return condition is not None and _lists(condition, tag, weak=True)


def precondition_failed(headers: Mapping[str, str], tag: str) -> bool:
    condition = headers.get("if-match")
    return condition is not None and not _lists(condition, tag, weak=False)


def slice_of(headers: Mapping[str, str], tag: str, size: int) -> Slice:
    """Raises Unsatisfiable. For several ranges, other units and bad syntax: the whole file, as the RFC allows."""
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


class Answer:
    """The bytes of a response and their headers."""

    def __init__(self, pieces: Sequence[Piece], part: Slice, size: int, headers: dict[str, str]) -> None:
        self.headers = headers
        self._pieces = cut(pieces, start=part.start, length=part.length)
        self._status = 206 if part.partial else 200
        if part.partial:
            self.headers["Content-Range"] = f"bytes {part.start}-{part.start + part.length - 1}/{size}"

    def response(self, request: Request, storage: Storage, *, media_type: str) -> Response:
        if request.method == "HEAD":
            headers = {**self.headers, "Content-Length": str(length_of(self._pieces))}
            return Response(status_code=self._status, headers=headers, media_type=media_type)
        return PiecesResponse(
            storage, self._pieces, status_code=self._status, headers=self.headers, media_type=media_type
        )


def decide(
    request: Request, pieces: Sequence[Piece], *, name: str, tag: str, headers: Mapping[str, str]
) -> Response | Answer:
    """304, or the bytes to send. Raises Problem 412 or 416."""
    usual = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": FOREVER, **headers}
    if precondition_failed(request.headers, tag):
        raise Problem(problems.PRECONDITION_FAILED, f"{name} has the ETag {tag}")
    if not_modified(request.headers, tag):
        return Response(status_code=304, headers=usual)
    size = length_of(pieces)
    try:
        part = slice_of(request.headers, tag, size)
    except Unsatisfiable:
        raise Problem(
            problems.RANGE_NOT_SATISFIABLE,
            f"{name} has {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        ) from None
    return Answer(pieces, part, size, usual)


def _lists(value: str, tag: str, *, weak: bool) -> bool:
    if value.strip() == "*":
        return True
    entries = (entry.strip() for entry in value.split(","))
    return any(entry == tag or (weak and entry == f"W/{tag}") for entry in entries)
