"""The dashboard's page of usage, stored bytes, limits and retention."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.deps import Service, ServiceDep, SessionDep
from app.retention.schemas import RetentionChanges
from app.retention.service import set_retention, view_retention
from app.ui.pages import Page, redirect_to, render
from app.ui.sign_in import KeysAdmin, UsageReader, User, checked_form
from app.usage.schemas import By, UsageQuery
from app.usage.service import usage_of

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
    request: Request, user: UsageReader, session: SessionDep, deps: ServiceDep, days: str = "30"
) -> Response:
    """Usage by day for a month, by month for longer spans."""
    span = days if days in SPANS else "30"
    since = datetime.now(UTC) - timedelta(days=int(span))
    query = UsageQuery.model_validate({"since": since.isoformat(), "by": By.DAY if span == "30" else By.MONTH})
    return await _page(request, user, session, deps, query, span)


@router.post("/usage/retention")
async def keep(request: Request, user: KeysAdmin, session: SessionDep, deps: ServiceDep) -> Response:
    form = await checked_form(request, user)
    days_by_kind = {name: str(form.get(name, "")).strip() for name in KINDS}
    try:
        changes = RetentionChanges.model_validate(
            {name: int(days) if days else None for name, days in days_by_kind.items()}
        )
    except ValueError:
        wrong = "Days are whole numbers from 1 on, and of the audit log from 30 on."
        query = UsageQuery.model_validate({})
        return await _page(request, user, session, deps, query, "30", wrong=wrong)
    await set_retention(session, tenant=user.caller.tenant, changes=changes)
    return redirect_to("/usage#kept")


async def _page(
    request: Request,
    user: User,
    session: AsyncSession,
    deps: Service,
    query: UsageQuery,
    span: str,
    wrong: str | None = None,
) -> Response:
    tenant = user.caller.tenant
    usage = await usage_of(session, deps, tenant=tenant, query=query)
    retention = await view_retention(session, tenant=tenant, settings=deps.settings)
    return render(
        request, "usage.html", user, status=422 if wrong else 200, usage=usage, span=span, spans=SPANS, kinds=KINDS,
        retention=retention, wrong=wrong,
    )  # fmt: skip
