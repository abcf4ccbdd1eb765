"""Send one file of a repository with the headers that Hub clients read."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller
from app.artifacts.sending import send_artifact
from app.db.engine import release
from app.deps import Service
from app.hub.problems import entry_not_found, error_headers
from app.hub.queries import COMMIT, files_at
from app.web.problems import Problem


async def send_file(
    request: Request,
    caller: Caller,
    session: AsyncSession,
    deps: Service,
    *,
    repository: str,
    revision: str,
    path: str,
) -> Response:
    """Raises Problem 404 as Hub clients expect it, and as ``send_artifact``."""
    commit, files = await files_at(session, tenant=caller.tenant, repository=repository, revision=revision)
    artifact = next((artifact for artifact in files if artifact.name == path), None)
    if artifact is None:
        raise entry_not_found(f"{repository} has no file {path!a}", commit.sha)
    await release(session)
    filename = quote(artifact.name.rsplit("/", 1)[-1])
    headers = {
        "X-Repo-Commit": commit.sha,
        "X-Linked-Etag": f'"{artifact.sha256}"',
        "X-Linked-Size": str(artifact.bytes),
        "Content-Disposition": f"inline; filename*=UTF-8''{filename}; filename=\"{filename}\";",
    }
    if COMMIT.fullmatch(revision) is None:
        headers["Cache-Control"] = "private, no-cache"  # `main` moves; its ETag tells
    try:
        return await send_artifact(request, deps, artifact, headers)
    except Problem as problem:
        problem.headers = {**error_headers(problem.detail), **(problem.headers or {})}
        raise
