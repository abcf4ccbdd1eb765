"""The routes of the dashboard."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from app.ui import (
    audit,
    comparisons,
    datasets,
    forks,
    jobs,
    keys,
    login,
    new_job,
    pages,
    pushes,
    reference,
    usage,
    webhooks,
    workers,
)
from app.web import problems
from app.web.problems import Problem

router = APIRouter(include_in_schema=False)
# /jobs/new before /jobs/{job_id}: the first matching route is used.
for part in (
    login,
    new_job,
    jobs,
    pushes,
    forks,
    comparisons,
    datasets,
    workers,
    usage,
    webhooks,
    keys,
    audit,
    reference,
):
    router.include_router(part.router)


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """A style sheet, a script, an icon. The name selects one of the files and never becomes a path."""
    path = pages.static_files().get(name)
    if path is None:
        raise Problem(problems.NOT_FOUND, f"no file {name!r}")
    return FileResponse(path, headers={"Cache-Control": "public, max-age=31536000, immutable"})
