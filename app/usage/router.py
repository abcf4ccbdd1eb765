"""``/v1/usage``: what a tenant used, by day or month, what it occupies, and what it may."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.deps import ServiceDep, SessionDep, UsageReader
from app.usage import service
from app.usage.schemas import Usage, UsageQuery
from app.web.problems import documented

router = APIRouter(prefix="/v1/usage", tags=["usage"])


@router.get("", responses=documented())
async def usage(
    query: Annotated[UsageQuery, Query()], caller: UsageReader, session: SessionDep, deps: ServiceDep
) -> Usage:
    """Jobs, seconds of workers and GPUs, and bytes; days and months without any are left out. Beside them what the
    tenant has now, and its limits."""
    return await service.usage_of(session, deps, tenant=caller.tenant, query=query)
