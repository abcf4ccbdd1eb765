"""``/v1/audit``: who did what to which thing, and when."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.audit import service
from app.audit.schemas import AuditQuery, AuditView
from app.deps import AuditReader, ServiceDep, SessionDep
from app.web import problems
from app.web.paging import Page
from app.web.problems import documented

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def audit(
    query: Annotated[AuditQuery, Query()], caller: AuditReader, session: SessionDep, deps: ServiceDep
) -> Page[AuditView]:
    """Acts of the tenant's keys, newest first. Reads are not listed, nor what was refused."""
    return await service.list_entries(session, tenant=caller.tenant, query=query, signer=deps.keyring)
