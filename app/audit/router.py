"""``/v1/audit``: who did what to which thing, and when."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.audit.schemas import AuditQuery, AuditView
from app.audit.service import entries_matching
from app.deps import AuditReader, ServiceDep, SessionDep
from app.web import problems
from app.web.paging import Page, page_of
from app.web.problems import documented
from core.ledger.tables import AuditEntry

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def audit(
    query: Annotated[AuditQuery, Query()], caller: AuditReader, session: SessionDep, parts: ServiceDep
) -> Page[AuditView]:
    """Acts of the tenant's keys, newest first. Reads are not listed, nor what was refused."""
    statement = entries_matching(caller.tenant, query)
    rows, cursor = await page_of(session, statement, AuditEntry, query=query, keyring=parts.keyring)
    return Page(data=[AuditView.of(row) for row in rows], has_more=cursor is not None, next_cursor=cursor)
