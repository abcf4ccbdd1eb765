"""What a tenant used in a range of time, what it stores now, and its limits."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from app.access.quotas import artifact_bytes, dataset_bytes, job_quota
from app.db.pipeline import transaction_of
from app.deps import Service
from app.usage.queries import periods
from app.usage.schemas import Limits, Stored, Unfinished, Usage, UsageQuery


async def usage_of(session: AsyncSession, deps: Service, *, tenant: str, query: UsageQuery) -> Usage:
    """The storage is listed for it."""
    since, until = query.span()
    uploads = await deps.meter.unfinished(tenant, fresh=True)
    transaction = await transaction_of(session)
    datasets = await dataset_bytes(transaction, tenant=tenant)
    artifacts = await artifact_bytes(transaction, tenant=tenant)
    now = await job_quota(session, tenant=tenant, settings=deps.settings)
    return Usage(
        since=since,
        until=until,
        by=query.by,
        periods=await periods(session, tenant=tenant, since=since, until=until, by=query.by),
        stored=Stored(datasets=datasets, artifacts=artifacts, uploads=uploads, total=datasets + artifacts + uploads),
        unfinished=Unfinished(queued=now.queued, running=now.running),
        limits=Limits(
            stored_bytes=now.max_stored_bytes,
            queued_jobs=now.max_queued_jobs,
            running_jobs=now.max_running_jobs,
            requests_per_minute=deps.settings.requests_per_minute or None,
        ),
    )
