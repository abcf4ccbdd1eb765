"""What a tenant may take up, checked before any work: waiting jobs and stored bytes. Running jobs are the claim's.

The bounds come from the settings; a row of ``tenant_limits`` overrides them for one tenant. Jobs that are made at the
same moment may together pass theirs by their number: it keeps a tenant from taking everything, it is no account. Bytes
of uploads do not: what is added is counted once more, one addition of a tenant after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from sqlalchemy import ColumnClause, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.db.pipeline import Transaction, joined
from app.db.tenancy import of_tenant, owned
from app.uploads import parts
from app.usage.queries import DATASET_BYTES, artifact_bytes, dataset_bytes
from app.web import problems
from app.web.problems import Problem
from core.ledger.states import LEASED
from core.ledger.tables import Job, TenantLimits
from core.settings import Settings
from core.storage import Storage

RETRY_SECONDS = "60"
STORAGE_LOCK = 0x7165_7374
"""``qest``: the first half of the advisory locks under which what a tenant adds to its storage is counted."""
WEBHOOK_LOCK = 0x7165_7768
"""``qewh``: as above, for webhooks."""
QUEUED: ColumnClause[str] = literal_column("'queued'")
"""Not a parameter: only with the word itself can the planner use the index of the jobs that wait."""


class StorageMeter:
    """Bytes of artifacts and of unfinished uploads by tenant, a minute old at most: a sum over all jobs, or a listing
    of the storage, is too much for each request."""

    SECONDS = 60.0

    def __init__(self, storage: Storage, engine: AsyncEngine) -> None:
        """``engine``: of connections that no request waits for."""
        self._storage = storage
        self._engine = engine
        self._known: dict[str, tuple[float, int]] = {}
        self._unfinished: dict[str, tuple[float, int]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def adding(self, tenant: str) -> AsyncIterator[None]:
        """Until the block ends nobody else, in any process, counts what the tenant has stored in order to add to it.

        The storage is listed meanwhile, which may take long: the lock has a connection that no request waits for, and
        of a tenant's many parts only one waits with one.
        """
        async with self._turns.setdefault(tenant, asyncio.Lock()), self._engine.begin() as connection:
            await connection.execute(select(func.pg_advisory_xact_lock(STORAGE_LOCK, func.hashtext(tenant))))
            yield

    async def artifacts(self, transaction: Transaction, tenant: str) -> int:
        at, known = self._known.get(tenant, (-self.SECONDS, 0))
        if time.monotonic() - at < self.SECONDS:
            return known
        known = await artifact_bytes(transaction, tenant=tenant)
        self._known[tenant] = (time.monotonic(), known)
        return known

    async def unfinished(self, tenant: str, *, fresh: bool = False) -> int:
        """``fresh``: as it is now, for who is about to add to it. While the storage is away: what was known last."""
        at, known = self._unfinished.get(tenant, (-self.SECONDS, 0))
        if fresh or time.monotonic() - at >= self.SECONDS:
            with contextlib.suppress(OSError):
                known = await asyncio.to_thread(parts.bytes_of_tenant, self._storage, tenant)
            self._unfinished[tenant] = (time.monotonic(), known)
        return known

    def forget(self, tenant: str) -> None:
        """Artifacts of the tenant were deleted: what is known of them is too much."""
        self._known.pop(tenant, None)

    def arrived(self, tenant: str, more: int) -> None:
        """A part was stored: what is known of unfinished uploads need not wait for the next listing."""
        at, known = self._unfinished.get(tenant, (-self.SECONDS, 0))
        self._unfinished[tenant] = (at, known + more)


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
    """Where a tenant stands when it asks for more jobs."""

    max_queued_jobs: int
    max_stored_bytes: int
    queue_is_full: bool
    dataset_bytes: int


async def admit(
    transaction: Transaction, *, tenant: str, settings: Settings, meter: StorageMeter, uploads: int, jobs: int = 1
) -> None:
    """Let the tenant make ``jobs`` more. ``uploads``: bytes of its unfinished uploads, which were counted before the
    transaction began. Raises Problem: 403 when its datasets, artifacts and unfinished uploads are
    over its bound already, 429 as ``admit_to_queue``."""
    admission = await _admission(transaction, tenant=tenant, settings=settings, jobs=jobs)
    stored = admission.dataset_bytes + await meter.artifacts(transaction, tenant) + uploads
    Room(tenant, stored, admission.max_stored_bytes).check(0)
    _check_queue(tenant, admission)


async def admit_to_queue(transaction: Transaction, *, tenant: str, settings: Settings) -> None:
    """Raises Problem 429 when as many jobs of the tenant wait as may."""
    _check_queue(tenant, await _admission(transaction, tenant=tenant, settings=settings, jobs=1))


async def _admission(transaction: Transaction, *, tenant: str, settings: Settings, jobs: int) -> Admission:
    bounds = {"max_queued_jobs": settings.max_queued_jobs, "max_stored_bytes": settings.max_stored_bytes}
    (found,) = await transaction.rows(ADMISSION, {"tenant": tenant, "more": jobs, **bounds}, of=Admission)
    return found


def _check_queue(tenant: str, admission: Admission) -> None:
    if admission.queue_is_full:
        raise Problem(
            problems.TOO_MANY_QUEUED_JOBS,
            f"{admission.max_queued_jobs} jobs of {tenant} may wait: come back when one has started, or cancel one",
            headers={"Retry-After": RETRY_SECONDS},
        )


@dataclass(frozen=True)
class Standing:
    """How many jobs a tenant has in the queue and at work, and what it may have of everything; None: no limit."""

    queued: int
    running: int
    max_queued_jobs: int
    max_running_jobs: int | None
    max_stored_bytes: int


async def standing(session: AsyncSession, *, tenant: str, settings: Settings) -> Standing:
    limits = await _limits(session, tenant)

    async def number(*statuses: ColumnClause[str]) -> int:
        jobs = owned(Job, tenant).where(Job.status.in_(statuses)).with_only_columns(func.count())
        return await session.scalar(jobs) or 0

    def most(name: str) -> int | None:
        own: int | None = getattr(limits, name, None)
        default: int | None = getattr(settings, name)
        return default if own is None else own

    return Standing(
        queued=await number(QUEUED),
        running=await number(*(literal_column(f"'{status.value}'") for status in LEASED)),
        max_queued_jobs=most("max_queued_jobs") or 0,
        max_running_jobs=most("max_running_jobs"),
        max_stored_bytes=most("max_stored_bytes") or 0,
    )


@dataclass(frozen=True)
class Room:
    """What a tenant has stored, and how much it may."""

    tenant: str
    there: int
    most: int

    def check(self, more: int, *, unread: bool = False) -> None:
        """Raises Problem 403 when ``more`` bytes do not fit; ``unread``: some of them are still to come from the
        client, who is told that nobody will read them."""
        if self.there + more > self.most:
            raise Problem(
                problems.STORAGE_QUOTA_EXCEEDED,
                f"{self.tenant} has stored {self.there} of {self.most} bytes; {more} more do not fit: delete jobs,"
                " datasets and unfinished uploads that it does not need",
                headers={"Connection": "close"} if unread else None,
            )


async def room_of(
    session: AsyncSession,
    *,
    tenant: str,
    settings: Settings,
    meter: StorageMeter,
    uploads: int,
) -> Room:
    """``uploads``: bytes of its unfinished uploads, without those in whose place others come."""
    limits = await _limits(session, tenant)
    most = settings.max_stored_bytes if limits is None or limits.max_stored_bytes is None else limits.max_stored_bytes
    transaction = await joined(session)
    kept = await dataset_bytes(transaction, tenant=tenant) + await meter.artifacts(transaction, tenant)
    return Room(tenant, kept + max(0, uploads), most)


async def one_at_a_time(session: AsyncSession, tenant: str) -> None:
    """Until this transaction ends, nobody else counts the tenant's webhooks in order to add one."""
    await session.execute(select(func.pg_advisory_xact_lock(WEBHOOK_LOCK, func.hashtext(tenant))))


async def _limits(session: AsyncSession, tenant: str) -> TenantLimits | None:
    return await session.scalar(owned(TenantLimits, tenant))
