"""``/docs``: the contract, to read and to try, with nothing from elsewhere.

FastAPI's own page takes its script from a CDN: empty where there is no internet, and elsewhere a stranger's script
beside the dashboard's session.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.ui.pages import Page, render

router = APIRouter(route_class=Page)


@router.get("/docs")
async def reference(request: Request) -> Response:
    return render(request, "reference.html", None)
