"""Quotas of a tenant, checked before any work: queued jobs and stored bytes. The claim limits running jobs.

The limits come from the settings; a row of ``tenant_limits`` overrides them for one tenant. Jobs that are created at
the same time may exceed their limit together, which is harmless. Uploads may not: additions of a tenant are counted
again under a lock, one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from sqlalchemy import ColumnClause, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.db.pipeline import Transaction, transaction_of
from app.db.tenancy import of_tenant, owned
from app.web import problems
from app.web.problems import Problem
from core.ledger.states import LEASED
from core.ledger.tables import Dataset, Job, TenantLimits
from core.settings import Settings

RETRY_SECONDS = "60"
STORAGE_LOCK = 0x7165_7374
"""``qest``: the first half of the advisory lock for additions to a tenant's storage."""
TENANT_LOCK = 0x7165_7768
"""``qewh``: the first half of the advisory lock for other changes of a tenant."""
QUEUED: ColumnClause[str] = literal_column("'queued'")
"""A literal, not a parameter: only then can the planner use the partial index of queued jobs."""


DATASET_BYTES = f"SELECT coalesce(sum(bytes), 0)::bigint AS bytes FROM {of_tenant(Dataset)} AND key IS NOT NULL"  # noqa: S608
ARTIFACT_BYTES = f"""
SELECT coalesce(sum(artifact_bytes), 0)::bigint AS bytes FROM {of_tenant(Job)} AND artifact_bytes IS NOT NULL
"""  # noqa: S608 -- every part is ours


@dataclass
class _Sum:
    bytes: int


async def dataset_bytes(transaction: Transaction, *, tenant: str) -> int:
    return (await transaction.rows(DATASET_BYTES, {"tenant": tenant}, of=_Sum))[0].bytes


async def artifact_bytes(transaction: Transaction, *, tenant: str) -> int:
    return (await transaction.rows(ARTIFACT_BYTES, {"tenant": tenant}, of=_Sum))[0].bytes


class StorageMeter:
    """Bytes of artifacts and of unfinished uploads by tenant, cached for a minute: a sum over all jobs, or a listing of
    the storage, is too slow for each request."""

    SECONDS = 60.0

    def __init__(self, count_unfinished: Callable[[str], int], engine: AsyncEngine) -> None:
        """``count_unfinished``: counts the bytes of a tenant's unfinished uploads; it blocks, and raises OSError while
        the storage is away. ``engine``: of connections that no request waits for."""
        self._count_unfinished = count_unfinished
        self._engine = engine
        self._artifact_bytes: dict[str, tuple[float, int]] = {}
        self._unfinished_bytes: dict[str, tuple[float, int]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def adding(self, tenant: str) -> AsyncIterator[None]:
        """Hold the lock for additions to the tenant's storage, across all processes.

        Listing the storage under it may take long. So the lock has a connection that no request waits for, and a
        tenant's requests in this process wait for it with one connection.
        """
        async with self._turns.setdefault(tenant, asyncio.Lock()), self._engine.begin() as connection:
            await connection.execute(select(func.pg_advisory_xact_lock(STORAGE_LOCK, func.hashtext(tenant))))
            yield

    async def artifacts(self, transaction: Transaction, tenant: str) -> int:
        at, size = self._artifact_bytes.get(tenant, (-self.SECONDS, 0))
        if time.monotonic() - at < self.SECONDS:
            return size
        size = await artifact_bytes(transaction, tenant=tenant)
        self._artifact_bytes[tenant] = (time.monotonic(), size)
        return size

    async def unfinished(self, tenant: str, *, fresh: bool = False) -> int:
        """``fresh``: count now, before an addition. While the storage is away: the last count."""
        at, size = self._unfinished_bytes.get(tenant, (-self.SECONDS, 0))
        if fresh or time.monotonic() - at >= self.SECONDS:
            with contextlib.suppress(OSError):
                size = await asyncio.to_thread(self._count_unfinished, tenant)
            self._unfinished_bytes[tenant] = (time.monotonic(), size)
        return size

    def forget(self, tenant: str) -> None:
        """Drop the cached bytes of artifacts, after a deletion."""
        self._artifact_bytes.pop(tenant, None)

    def add_unfinished(self, tenant: str, more: int) -> None:
        """Add a stored part to the cached count."""
        at, size = self._unfinished_bytes.get(tenant, (-self.SECONDS, 0))
        self._unfinished_bytes[tenant] = (at, size + more)


ADMISSION = f"""
WITH bounds AS (
    SELECT coalesce(max(max_queued_jobs), %(max_queued_jobs)s) AS jobs,
        coalesce(max(max_stored_bytes), %(max_stored_bytes)s) AS bytes
    FROM {of_tenant(TenantLimits)}
)
SELECT jobs AS max_queued_jobs, bytes AS max_stored_bytes,
    jobs < %(more)s OR EXISTS (
        SELECT FROM {of_tenant(Job)} AND status = 'queued' OFFSET (SELECT greatest(0, jobs - %(more)s) FROM bounds)
    ) AS queue_is_full,
    ({DATASET_BYTES}) AS dataset_bytes
FROM bounds
"""  # noqa: S608 -- every part is ours


@dataclass
class Admission:
    """The limits of a tenant and what it uses, before it creates jobs."""

    max_queued_jobs: int
    max_stored_bytes: int
    queue_is_full: bool
    dataset_bytes: int


async def admit(
    transaction: Transaction, *, tenant: str, settings: Settings, meter: StorageMeter, uploads: int, jobs: int = 1
) -> None:
    """Check that the tenant may create ``jobs`` more. ``uploads``: bytes of its unfinished uploads, counted before the
    transaction. Raises Problem: 403 when its datasets, artifacts and unfinished uploads exceed the limit, 429 as
    ``admit_to_queue``."""
    admission = await _admission(transaction, tenant=tenant, settings=settings, jobs=jobs)
    total = admission.dataset_bytes + await meter.artifacts(transaction, tenant) + uploads
    StorageQuota(tenant, total, admission.max_stored_bytes).check(0)
    _check_queue(tenant, admission)


async def admit_to_queue(transaction: Transaction, *, tenant: str, settings: Settings) -> None:
    """Raises Problem 429 when the queue of the tenant is full."""
    _check_queue(tenant, await _admission(transaction, tenant=tenant, settings=settings, jobs=1))


async def _admission(transaction: Transaction, *, tenant: str, settings: Settings, jobs: int) -> Admission:
    bounds = {"max_queued_jobs": settings.max_queued_jobs, "max_stored_bytes": settings.max_stored_bytes}
    (admission,) = await transaction.rows(ADMISSION, {"tenant": tenant, "more": jobs, **bounds}, of=Admission)
    return admission


def _check_queue(tenant: str, admission: Admission) -> None:
    if admission.queue_is_full:
        raise Problem(
            problems.TOO_MANY_QUEUED_JOBS,
            f"{admission.max_queued_jobs} jobs of {tenant} may wait: come back when one has started, or cancel one",
            headers={"Retry-After": RETRY_SECONDS},
        )


@dataclass(frozen=True)
class JobQuota:
    """Queued and running jobs of a tenant, and its limits; None: no limit."""

    queued: int
    running: int
    max_queued_jobs: int
    max_running_jobs: int | None
    max_stored_bytes: int


async def job_quota(session: AsyncSession, *, tenant: str, settings: Settings) -> JobQuota:
    limits = await _limits(session, tenant)

    async def number(*statuses: ColumnClause[str]) -> int:
        jobs = owned(Job, tenant).where(Job.status.in_(statuses)).with_only_columns(func.count())
        return await session.scalar(jobs) or 0

    def most(name: str) -> int | None:
        own: int | None = getattr(limits, name, None)
        default: int | None = getattr(settings, name)
        return default if own is None else own

    return JobQuota(
        queued=await number(QUEUED),
        running=await number(*(literal_column(f"'{status.value}'") for status in LEASED)),
        max_queued_jobs=most("max_queued_jobs") or 0,
        max_running_jobs=most("max_running_jobs"),
        max_stored_bytes=most("max_stored_bytes") or 0,
    )


@dataclass(frozen=True)
class StorageQuota:
    """Bytes that a tenant has stored, and its limit."""

    tenant: str
    stored: int
    limit: int

    def check(self, more: int, *, unread: bool = False) -> None:
        """Raises Problem 403 when ``more`` bytes do not fit. ``unread``: the client still sends some of them; the
        connection is closed."""
        if self.stored + more > self.limit:
            raise Problem(
                problems.STORAGE_QUOTA_EXCEEDED,
                f"{self.tenant} has stored {self.stored} of {self.limit} bytes; {more} more do not fit: delete jobs,"
                " datasets and unfinished uploads that it does not need",
                headers={"Connection": "close"} if unread else None,
            )


async def storage_quota(
    session: AsyncSession,
    *,
    tenant: str,
    settings: Settings,
    meter: StorageMeter,
    uploads: int,
) -> StorageQuota:
    """``uploads``: bytes of the tenant's unfinished uploads, without parts that are being replaced."""
    limits = await _limits(session, tenant)
    most = settings.max_stored_bytes if limits is None or limits.max_stored_bytes is None else limits.max_stored_bytes
    transaction = await transaction_of(session)
    total = await dataset_bytes(transaction, tenant=tenant) + await meter.artifacts(transaction, tenant)
    return StorageQuota(tenant, total + max(0, uploads), most)


async def lock_tenant(session: AsyncSession, tenant: str) -> None:
    """Serialize changes of the tenant's webhooks, tokens and retention until this transaction ends."""
    await session.execute(select(func.pg_advisory_xact_lock(TENANT_LOCK, func.hashtext(tenant))))


async def _limits(session: AsyncSession, tenant: str) -> TenantLimits | None:
    return await session.scalar(owned(TenantLimits, tenant))
