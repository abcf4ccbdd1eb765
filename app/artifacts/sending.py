"""Stored bytes as a response: conditional, in parts, with their digest, by whoever moves them best."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from fastapi import Request, Response

from app.artifacts import ranges
from app.artifacts.content import Piece, PiecesResponse, Stored, cut, length_of
from app.deps import Service
from app.web import problems
from app.web.problems import Problem
from core.ledger.tables import Artifact
from core.storage import LocalStorage, ObjectMissing, Presentation, Storage

BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}, "*/*": {}}}
FOREVER = "private, max-age=31536000, immutable"


async def send_artifact(
    request: Request, parts: Service, artifact: Artifact, headers: Mapping[str, str], *, by_others: bool = True
) -> Response:
    """The file as the request's conditions and range ask for it; ``headers`` go before the usual ones.

    ``by_others``: nginx or the object store may send it in our place, if so configured; they drop some headers.
    Raises Problem: 412, 416, or 500 when the storage has lost the file.
    """
    headers = {"Repr-Digest": ranges.repr_digest(artifact.sha256), **headers}
    pieces = [Stored(artifact.key, 0, artifact.bytes)]
    answer = decide(request, pieces, name=artifact.name, tag=ranges.etag(artifact.sha256), headers=headers)
    if isinstance(answer, Response):
        return answer
    await check_stored(parts.storage, artifact)
    if by_others and request.method == "GET":
        elsewhere = _by_nginx(parts, artifact, answer.headers) or await _by_the_store(parts, artifact, headers)
        if elsewhere is not None:
            return elsewhere
    return answer.response(request, parts.storage, media_type=artifact.media_type)


def _by_nginx(parts: Service, artifact: Artifact, headers: Mapping[str, str]) -> Response | None:
    """nginx cuts the range itself, from the same file."""
    prefix = parts.settings.accel_prefix
    if prefix is None or not isinstance(parts.storage, LocalStorage):
        return None
    kept = {name: value for name, value in headers.items() if name != "Content-Range"}
    location = f"{prefix.rstrip('/')}/{quote(artifact.key)}"
    return Response(headers={**kept, "X-Accel-Redirect": location}, media_type=artifact.media_type)


async def _by_the_store(parts: Service, artifact: Artifact, headers: Mapping[str, str]) -> Response | None:
    """The client takes the range from the store, whose ETag is another than ours."""
    if not parts.settings.redirect_downloads:
        return None
    presentation = Presentation(artifact.media_type, headers.get("Content-Disposition", "attachment"))
    url = await asyncio.to_thread(parts.storage.link, artifact.key, presentation)
    if url is None:
        return None
    kept = {name: value for name, value in headers.items() if name.startswith("X-")}
    return Response(status_code=302, headers={**kept, "Location": url, "Cache-Control": "no-store"})


class Answer:
    """The bytes that a request gets, and the headers that say so."""

    def __init__(self, pieces: Sequence[Piece], part: ranges.Slice, size: int, headers: dict[str, str]) -> None:
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
    if ranges.precondition_failed(request.headers, tag):
        raise Problem(problems.PRECONDITION_FAILED, f"{name} has the ETag {tag}")
    if ranges.not_modified(request.headers, tag):
        return Response(status_code=304, headers=usual)
    size = length_of(pieces)
    try:
        part = ranges.slice_of(request.headers, tag, size)
    except ranges.Unsatisfiable:
        raise Problem(
            problems.RANGE_NOT_SATISFIABLE,
            f"{name} has {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        ) from None
    return Answer(pieces, part, size, usual)


async def check_stored(storage: Storage, artifact: Artifact) -> None:
    """Raises Problem while there is still time: after the first byte only a broken connection is left."""
    try:
        size = await asyncio.to_thread(storage.size, artifact.key)
    except ObjectMissing:
        size = -1
    if size != artifact.bytes:
        raise Problem(problems.OBJECT_MISSING, f"{artifact.name} is not in the storage as it was published")
