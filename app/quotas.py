"""What a tenant may take up, checked before any work: waiting jobs and stored bytes. Running jobs are the claim's.

The bounds come from the settings; a row of ``tenant_limits`` overrides them for one tenant. Requests at the same moment
may together pass a bound by their number: it keeps a tenant from taking everything, it is no account.
"""

from __future__ import annotations

import time

from sqlalchemy import ColumnClause, literal_column
from sqlalchemy.ext.asyncio import AsyncSession

from app import problems
from app.contract.tables import Job, TenantLimits
from app.problems import Problem
from app.settings import Settings
from app.tenancy import owned
from app.usage.queries import artifact_bytes, dataset_bytes

RETRY_SECONDS = "60"
QUEUED: ColumnClause[str] = literal_column("'queued'")
"""Not a parameter: only with the word itself can the planner use the index of the jobs that wait."""


class StorageMeter:
    """Bytes of artifacts by tenant, a minute old at most: a sum over all jobs is too much for each request."""

    SECONDS = 60.0

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, int]] = {}

    async def artifacts(self, session: AsyncSession, tenant: str) -> int:
        at, known = self._known.get(tenant, (-self.SECONDS, 0))
        if time.monotonic() - at < self.SECONDS:
            return known
        known = await artifact_bytes(session, tenant=tenant)
        self._known[tenant] = (time.monotonic(), known)
        return known


async def check_queue(session: AsyncSession, *, tenant: str, settings: Settings) -> None:
    """Raises Problem 429 when as many jobs of the tenant wait as may."""
    limits = await _limits(session, tenant)
    most = settings.max_queued_jobs if limits is None or limits.max_queued_jobs is None else limits.max_queued_jobs
    last = owned(Job, tenant).where(Job.status == QUEUED).with_only_columns(Job.id).offset(max(0, most - 1)).limit(1)
    if most == 0 or await session.scalar(last) is not None:
        raise Problem(
            problems.TOO_MANY_QUEUED_JOBS,
            f"{most} jobs of {tenant} may wait: come back when one has started, or cancel one",
            headers={"Retry-After": RETRY_SECONDS},
        )


async def check_storage(
    session: AsyncSession, *, tenant: str, settings: Settings, meter: StorageMeter, more: int = 0
) -> None:
    """Raises Problem 403 when the tenant's datasets and artifacts, and ``more`` bytes, are over its bound."""
    limits = await _limits(session, tenant)
    most = settings.max_stored_bytes if limits is None or limits.max_stored_bytes is None else limits.max_stored_bytes
    there = await dataset_bytes(session, tenant=tenant) + await meter.artifacts(session, tenant)
    if there + more > most:
        raise Problem(
            problems.STORAGE_QUOTA_EXCEEDED,
            f"{tenant} has stored {there} of {most} bytes; {more} more do not fit: delete datasets it does not need",
        )


async def _limits(session: AsyncSession, tenant: str) -> TenantLimits | None:
    return await session.scalar(owned(TenantLimits, tenant))
