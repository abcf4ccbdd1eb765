"""The dashboard's page of what a tenant used, what it occupies, and what it may."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.deps import Service, ServiceDep, SessionDep
from app.retention import router as retention
from app.retention.schemas import RetentionChanges
from app.ui.pages import Page, render, see
from app.ui.visitor import KeysAdmin, UsageReader, Visitor, form_of
from app.usage import router as api
from app.usage.schemas import By, UsageQuery

SPANS = {"30": "30 days", "90": "90 days", "365": "12 months"}
KINDS = {
    "jobs_days": "Finished jobs",
    "events_days": "Their events",
    "layers_days": "Reports of their blocks",
    "audit_days": "Audit log",
    "deliveries_days": "Webhook deliveries",
}
router = APIRouter(route_class=Page)


@router.get("/usage")
async def usage(
    request: Request, visitor: UsageReader, session: SessionDep, parts: ServiceDep, days: str = "30"
) -> Response:
    """Days one by one for a month, months for more."""
    span = days if days in SPANS else "30"
    since = datetime.now(UTC) - timedelta(days=int(span))
    query = UsageQuery.model_validate({"since": since.isoformat(), "by": By.DAY if span == "30" else By.MONTH})
    return await _page(request, visitor, session, parts, query, span)


@router.post("/usage/retention")
async def keep(request: Request, visitor: KeysAdmin, session: SessionDep, parts: ServiceDep) -> Response:
    form = await form_of(request, visitor)
    given = {name: str(form.get(name, "")).strip() for name in KINDS}
    try:
        wanted = RetentionChanges.model_validate({name: int(days) if days else None for name, days in given.items()})
    except ValueError:
        wrong = "Days are whole numbers from 1 on, and of the audit log from 30 on."
        query = UsageQuery.model_validate({})
        return await _page(request, visitor, session, parts, query, "30", wrong=wrong)
    await retention.set_retention(session, tenant=visitor.caller.tenant, wanted=wanted)
    return see("/usage#kept")


async def _page(
    request: Request,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    query: UsageQuery,
    span: str,
    wrong: str | None = None,
) -> Response:
    found = await api.usage(query, visitor.caller, session, parts)
    kept = await retention.view(session, tenant=visitor.caller.tenant, settings=parts.settings)
    return render(
        request, "usage.html", visitor, status=422 if wrong else 200, usage=found, span=span, spans=SPANS, kinds=KINDS,
        retention=kept, wrong=wrong,
    )  # fmt: skip
