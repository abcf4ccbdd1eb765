"""One artifact as a response: conditional, in parts, with its digest, from whatever storage holds it."""

from __future__ import annotations

import asyncio

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app import problems
from app.artifacts import ranges
from app.artifacts.content import read_object
from app.contract.tables import Artifact
from app.problems import Problem
from app.storage import ObjectMissing, Storage

BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


async def send_artifact(request: Request, storage: Storage, artifact: Artifact, headers: dict[str, str]) -> Response:
    """The file as the request's conditions and range ask for it; ``headers`` go before the usual ones."""
    tag = ranges.etag(artifact.sha256)
    headers = {
        "ETag": tag,
        "Repr-Digest": ranges.repr_digest(artifact.sha256),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        **headers,
    }
    if ranges.precondition_failed(request.headers, tag):
        raise Problem(problems.PRECONDITION_FAILED, f"{artifact.name} has the ETag {tag}")
    if ranges.not_modified(request.headers, tag):
        return Response(status_code=304, headers=headers)
    try:
        part = ranges.slice_of(request.headers, tag, artifact.bytes)
    except ranges.Unsatisfiable:
        raise Problem(
            problems.RANGE_NOT_SATISFIABLE,
            f"{artifact.name} has {artifact.bytes} bytes",
            headers={"Content-Range": f"bytes */{artifact.bytes}"},
        ) from None
    await check_stored(storage, artifact)
    headers |= {"Content-Length": str(part.length)}
    if part.partial:
        headers |= {"Content-Range": f"bytes {part.start}-{part.start + part.length - 1}/{artifact.bytes}"}
    status = 206 if part.partial else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=artifact.media_type)
    content = read_object(storage, artifact.key, start=part.start, length=part.length)
    return StreamingResponse(content, status_code=status, headers=headers, media_type=artifact.media_type)


async def check_stored(storage: Storage, artifact: Artifact) -> None:
    """Raises Problem while there is still time: after the first byte only a broken connection is left."""
    try:
        size = await asyncio.to_thread(storage.size, artifact.key)
    except ObjectMissing:
        size = -1
    if size != artifact.bytes:
        raise Problem(problems.OBJECT_MISSING, f"{artifact.name} is not in the storage as it was published")
