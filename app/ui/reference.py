"""``/docs``: the API reference, with all files from this service.

FastAPI's page loads its script from a CDN: it is empty without internet access, and runs a foreign script beside the
dashboard's session.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.ui.pages import Page, render

router = APIRouter(route_class=Page)


@router.get("/docs")
async def reference(request: Request) -> Response:
    return render(request, "reference.html", None)
