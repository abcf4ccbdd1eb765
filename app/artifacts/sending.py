"""A stored file as a response, sent by this process, by nginx or by the object store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

from fastapi import Request, Response

from app.deps import Service
from app.web import problems, ranges
from app.web.file_response import ObjectPart
from app.web.problems import Problem
from core.ledger.tables import Artifact
from core.storage import LocalStorage, ObjectMissing, Presentation, Storage

BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}, "*/*": {}}}


async def send_artifact(
    request: Request, deps: Service, artifact: Artifact, headers: Mapping[str, str], *, by_others: bool = True
) -> Response:
    """The file, as the conditions and the range of the request ask. ``headers`` override the usual ones.

    ``by_others``: nginx or the object store may send it, where configured; they drop some headers.
    Raises Problem: 412, 416, or 500 when the storage has lost the file.
    """
    headers = {"Repr-Digest": ranges.repr_digest(artifact.sha256), **headers}
    pieces = [ObjectPart(artifact.key, 0, artifact.bytes)]
    answer = ranges.decide(request, pieces, name=artifact.name, tag=ranges.etag(artifact.sha256), headers=headers)
    if isinstance(answer, Response):
        return answer
    await check_stored(deps.storage, artifact)
    if by_others and request.method == "GET":
        elsewhere = _by_nginx(deps, artifact, answer.headers) or await _by_the_store(deps, artifact, headers)
        if elsewhere is not None:
            return elsewhere
    return answer.response(request, deps.storage, media_type=artifact.media_type)


def _by_nginx(deps: Service, artifact: Artifact, headers: Mapping[str, str]) -> Response | None:
    """A response that makes nginx send the range, from the same file."""
    prefix = deps.settings.accel_prefix
    if prefix is None or not isinstance(deps.storage, LocalStorage):
        return None
    own = {name: value for name, value in headers.items() if name != "Content-Range"}
    location = f"{prefix.rstrip('/')}/{quote(artifact.key)}"
    return Response(headers={**own, "X-Accel-Redirect": location}, media_type=artifact.media_type)


async def _by_the_store(deps: Service, artifact: Artifact, headers: Mapping[str, str]) -> Response | None:
    """A redirect to the object store, whose ETag differs from ours."""
    if not deps.settings.redirect_downloads:
        return None
    presentation = Presentation(artifact.media_type, headers.get("Content-Disposition", "attachment"))
    url = await asyncio.to_thread(deps.storage.link, artifact.key, presentation)
    if url is None:
        return None
    own = {name: value for name, value in headers.items() if name.startswith("X-")}
    return Response(status_code=302, headers={**own, "Location": url, "Cache-Control": "no-store"})


async def check_stored(storage: Storage, artifact: Artifact) -> None:
    """Raises Problem 500 before the first byte is sent, when the storage has lost the file."""
    try:
        size = await asyncio.to_thread(storage.size, artifact.key)
    except ObjectMissing:
        size = -1
    if size != artifact.bytes:
        raise Problem(problems.OBJECT_MISSING, f"{artifact.name} is not in the storage as it was published")
