"""The dashboard's page of workers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.deps import ServiceDep, SessionDep
from app.system.service import list_workers
from app.ui.pages import Page, render
from app.ui.sign_in import WorkersReader

router = APIRouter(route_class=Page)


@router.get("/workers")
async def workers(request: Request, user: WorkersReader, session: SessionDep, deps: ServiceDep) -> Response:
    views = (await list_workers(session, tenant=user.caller.tenant, settings=deps.settings)).data
    alive = sorted(views, key=lambda worker: (not worker.alive, -worker.seen_at.timestamp()))
    return render(request, "workers.html", user, workers=alive)
