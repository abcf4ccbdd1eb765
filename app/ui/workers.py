"""The dashboard's page of workers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.deps import ServiceDep, SessionDep
from app.system import router as api
from app.ui.pages import Page, render
from app.ui.visitor import WorkersReader

router = APIRouter(route_class=Page)


@router.get("/workers")
async def workers(request: Request, visitor: WorkersReader, session: SessionDep, parts: ServiceDep) -> Response:
    seen = (await api.workers(visitor.caller, session, parts)).data
    alive = sorted(seen, key=lambda worker: (not worker.alive, -worker.seen_at.timestamp()))
    return render(request, "workers.html", visitor, workers=alive)
