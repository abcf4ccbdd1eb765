"""``/v1/usage``: what a tenant used, by day or month, and what it occupies."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.deps import ServiceDep, SessionDep, UsageReader
from app.problems import documented
from app.usage import queries
from app.usage.schemas import Stored, Usage, UsageQuery

router = APIRouter(prefix="/v1/usage", tags=["usage"])


@router.get("", responses=documented())
async def usage(
    query: Annotated[UsageQuery, Query()], caller: UsageReader, session: SessionDep, parts: ServiceDep
) -> Usage:
    """Jobs, seconds of workers and GPUs, and bytes; days and months without any are left out."""
    since, until = query.span()
    datasets = await queries.dataset_bytes(session, tenant=caller.tenant)
    artifacts = await queries.artifact_bytes(session, tenant=caller.tenant)
    uploads = await parts.meter.unfinished(caller.tenant, fresh=True)
    return Usage(
        since=since,
        until=until,
        by=query.by,
        periods=await queries.periods(session, tenant=caller.tenant, since=since, until=until, by=query.by),
        stored=Stored(datasets=datasets, artifacts=artifacts, uploads=uploads, total=datasets + artifacts + uploads),
    )
