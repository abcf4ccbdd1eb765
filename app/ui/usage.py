"""The dashboard's page of what a tenant used, what it occupies, and what it may."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response

from app.deps import ServiceDep, SessionDep
from app.ui.pages import Page, render
from app.ui.visitor import UsageReader
from app.usage import router as api
from app.usage.schemas import By, UsageQuery

SPANS = {"30": "30 days", "90": "90 days", "365": "12 months"}
router = APIRouter(route_class=Page)


@router.get("/usage")
async def usage(
    request: Request, visitor: UsageReader, session: SessionDep, parts: ServiceDep, days: str = "30"
) -> Response:
    """Days one by one for a month, months for more."""
    span = days if days in SPANS else "30"
    since = datetime.now(UTC) - timedelta(days=int(span))
    query = UsageQuery.model_validate({"since": since.isoformat(), "by": By.DAY if span == "30" else By.MONTH})
    found = await api.usage(query, visitor.caller, session, parts)
    return render(request, "usage.html", visitor, usage=found, span=span, spans=SPANS)
