"""Make the jobs of a comparison, cancel them, forget the comparison."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Actor
from app.audit.service import Action, note
from app.comparisons.queries import get_comparison, jobs_of
from app.comparisons.schemas import ComparisonView, NewComparison
from app.db.engine import release
from app.db.pipeline import joined
from app.jobs.creation import create_job
from app.jobs.queries import get_job
from app.jobs.rows import JobRow
from app.jobs.service import cancel_job
from app.plans.agreement import Agreed, guard_creation
from core.contract.ids import new_id
from core.ledger.states import FINISHED
from core.ledger.tables import Comparison
from core.settings import Settings
from core.storage import Storage


async def agreed_on(
    session: AsyncSession, *, tenant: str, wanted: NewComparison, settings: Settings, storage: Storage
) -> list[Agreed]:
    """For each candidate. Reads files; no connection is held meanwhile. Raises Problem as ``guard_creation``."""
    agreed = [
        await guard_creation(session, tenant=tenant, spec=wanted.job_of(candidate), settings=settings, storage=storage)
        for candidate in wanted.candidates
    ]
    await release(session)
    return agreed


async def create_comparison(
    session: AsyncSession, *, actor: Actor, wanted: NewComparison, agreed: Sequence[Agreed], settings: Settings
) -> tuple[ComparisonView, list[str]]:
    """The comparison and the ids of its jobs, all or none of them. Raises Problem as making one of the jobs would."""
    comparison = Comparison(
        id=new_id("cmp"),
        tenant=actor.tenant,
        name=wanted.name,
        request=wanted.model_dump(mode="json", exclude_none=True),
    )
    session.add(comparison)
    await session.flush()
    await note(session, Action.COMPARISON_CREATED, comparison.id)
    transaction = await joined(session)
    jobs: list[JobRow] = []
    for candidate, each in zip(wanted.candidates, agreed, strict=True):
        job = await create_job(
            transaction,
            actor=actor,
            spec=wanted.job_of(candidate),
            settings=settings,
            plan=each.estimate,
            comparison_id=comparison.id,
        )
        jobs.append(job)
    await session.refresh(comparison)
    return ComparisonView.of(comparison, jobs), [job.id for job in jobs]


async def view_comparison(session: AsyncSession, *, tenant: str, comparison_id: str) -> ComparisonView:
    comparison = await get_comparison(session, tenant=tenant, comparison_id=comparison_id)
    return ComparisonView.of(comparison, await jobs_of(session, tenant=tenant, comparison_id=comparison_id))


async def cancel_comparison(session: AsyncSession, *, tenant: str, comparison_id: str) -> ComparisonView:
    """Every job of it that has not ended is cancelled. Doing it twice changes nothing."""
    comparison = await get_comparison(session, tenant=tenant, comparison_id=comparison_id, lock=True)
    jobs = await jobs_of(session, tenant=tenant, comparison_id=comparison_id)
    if any(job.status not in FINISHED for job in jobs):
        await note(session, Action.COMPARISON_CANCELLED, comparison_id)
    for job in jobs:
        # Looked at again under its lock: it may have ended since.
        if job.status not in FINISHED:
            await _cancel_unless_finished(session, tenant=tenant, job_id=job.id)
    return ComparisonView.of(comparison, await jobs_of(session, tenant=tenant, comparison_id=comparison_id))


async def delete_comparison(session: AsyncSession, *, tenant: str, comparison_id: str) -> None:
    """Cancels what has not ended, and forgets the comparison; its jobs and their results stay."""
    await cancel_comparison(session, tenant=tenant, comparison_id=comparison_id)
    comparison = await get_comparison(session, tenant=tenant, comparison_id=comparison_id)
    for job in await jobs_of(session, tenant=tenant, comparison_id=comparison_id):
        job.comparison_id = None
    await session.delete(comparison)
    await note(session, Action.COMPARISON_DELETED, comparison_id)
    await session.flush()


async def _cancel_unless_finished(session: AsyncSession, *, tenant: str, job_id: str) -> None:
    job = await get_job(session, tenant=tenant, job_id=job_id, lock=True)
    await session.refresh(job)
    if job.status not in FINISHED:
        await cancel_job(session, tenant=tenant, job_id=job_id)
