"""``/v1/usage``: what a tenant used, by day or month, what it occupies, and what it may."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.access.quotas import standing
from app.db.pipeline import joined
from app.deps import ServiceDep, SessionDep, UsageReader
from app.usage import queries
from app.usage.schemas import Limits, Stored, Unfinished, Usage, UsageQuery
from app.web.problems import documented

router = APIRouter(prefix="/v1/usage", tags=["usage"])


@router.get("", responses=documented())
async def usage(
    query: Annotated[UsageQuery, Query()], caller: UsageReader, session: SessionDep, parts: ServiceDep
) -> Usage:
    """Jobs, seconds of workers and GPUs, and bytes; days and months without any are left out. Beside them what the
    tenant has now, and its limits."""
    since, until = query.span()
    uploads = await parts.meter.unfinished(caller.tenant, fresh=True)
    transaction = await joined(session)
    datasets = await queries.dataset_bytes(transaction, tenant=caller.tenant)
    artifacts = await queries.artifact_bytes(transaction, tenant=caller.tenant)
    now = await standing(session, tenant=caller.tenant, settings=parts.settings)
    return Usage(
        since=since,
        until=until,
        by=query.by,
        periods=await queries.periods(session, tenant=caller.tenant, since=since, until=until, by=query.by),
        stored=Stored(datasets=datasets, artifacts=artifacts, uploads=uploads, total=datasets + artifacts + uploads),
        unfinished=Unfinished(queued=now.queued, running=now.running),
        limits=Limits(
            stored_bytes=now.max_stored_bytes,
            queued_jobs=now.max_queued_jobs,
            running_jobs=now.max_running_jobs,
            requests_per_minute=parts.settings.requests_per_minute or None,
        ),
    )
