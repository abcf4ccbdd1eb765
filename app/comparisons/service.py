"""Make the jobs of a comparison, cancel them, forget the comparison."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Actor, Caller
from app.access.quotas import admit
from app.audit.service import Action, note
from app.comparisons.queries import get_comparison, jobs_of
from app.comparisons.schemas import ComparisonView, NewComparison
from app.db.engine import release
from app.db.pipeline import transaction_of
from app.db.tenancy import owned
from app.deps import Service, actor_of
from app.jobs.creation import create_job
from app.jobs.queries import get_job
from app.jobs.rows import JobRow
from app.jobs.service import cancel_job
from app.plans.agreement import Agreement, check_fits_workers
from app.web.idempotency import Created, Idempotency, Outcome
from app.web.paging import Page, PageQuery, Signer, page_of
from app.web.wakeups import RequestNotifier
from core.contract.ids import new_id
from core.ledger.states import FINISHED
from core.ledger.tables import Comparison
from core.settings import Settings
from core.storage import Storage


async def submit_comparison(
    request: Request,
    caller: Caller,
    session: AsyncSession,
    deps: Service,
    notifier: RequestNotifier,
    *,
    new: NewComparison,
    idempotency_key: str | None,
) -> Outcome:
    """Queue a job for each candidate, and wake workers after the commit. Raises Problem as ``admit``,
    ``agree_on_each`` and ``create_comparison``."""
    tenant, settings = caller.tenant, deps.settings
    idempotency = Idempotency.of(tenant, idempotency_key, "POST /v1/comparisons", new.model_dump(mode="json"))
    replay = await idempotency.replay(deps.sessions)
    if replay is not None:
        return replay
    async with deps.reading(request, caller):
        agreements = await agree_on_each(session, tenant=tenant, new=new, settings=settings, storage=deps.storage)
    uploads = await deps.meter.unfinished(tenant)
    transaction = await transaction_of(session)

    async def create() -> Created:
        more = len(new.candidates)
        await admit(transaction, tenant=tenant, settings=settings, meter=deps.meter, uploads=uploads, jobs=more)
        view = await create_comparison(
            session, actor=actor_of(request), new=new, agreements=agreements, settings=settings
        )
        for job in view.jobs:
            notifier.notify_later(job.job_id)
        return Created(view, f"/v1/comparisons/{view.id}")

    return await idempotency.run(transaction, create)


async def list_comparisons(
    session: AsyncSession, *, tenant: str, query: PageQuery, signer: Signer
) -> Page[ComparisonView]:
    """Newest first. Raises Problem for a cursor of another listing."""
    rows, cursor = await page_of(session, owned(Comparison, tenant), Comparison, query=query, signer=signer)
    views = [ComparisonView.of(row, await jobs_of(session, tenant=tenant, comparison_id=row.id)) for row in rows]
    return Page(data=views, has_more=cursor is not None, next_cursor=cursor)


async def agree_on_each(
    session: AsyncSession, *, tenant: str, new: NewComparison, settings: Settings, storage: Storage
) -> list[Agreement]:
    """The estimate of each candidate. Reads files without a database connection. Raises as ``check_fits_workers``."""
    agreements = [
        await check_fits_workers(session, tenant=tenant, spec=new.job_of(candidate), settings=settings, storage=storage)
        for candidate in new.candidates
    ]
    await release(session)
    return agreements


async def create_comparison(
    session: AsyncSession, *, actor: Actor, new: NewComparison, agreements: Sequence[Agreement], settings: Settings
) -> ComparisonView:
    """Create the comparison with all of its jobs. Raises Problem as ``create_job``."""
    comparison = Comparison(
        id=new_id("cmp"),
        tenant=actor.tenant,
        name=new.name,
        request=new.model_dump(mode="json", exclude_none=True),
    )
    session.add(comparison)
    await session.flush()
    await note(session, Action.COMPARISON_CREATED, comparison.id)
    transaction = await transaction_of(session)
    jobs: list[JobRow] = []
    for candidate, each in zip(new.candidates, agreements, strict=True):
        job = await create_job(
            transaction,
            actor=actor,
            spec=new.job_of(candidate),
            settings=settings,
            plan=each.estimate,
            comparison_id=comparison.id,
        )
        jobs.append(job)
    await session.refresh(comparison)
    return ComparisonView.of(comparison, jobs)


async def view_comparison(session: AsyncSession, *, tenant: str, comparison_id: str) -> ComparisonView:
    comparison = await get_comparison(session, tenant=tenant, comparison_id=comparison_id)
    return ComparisonView.of(comparison, await jobs_of(session, tenant=tenant, comparison_id=comparison_id))


async def cancel_comparison(session: AsyncSession, *, tenant: str, comparison_id: str) -> ComparisonView:
    """Cancel every job of it that has not ended. Idempotent. Raises Problem 404."""
    comparison = await get_comparison(session, tenant=tenant, comparison_id=comparison_id, lock=True)
    jobs = await jobs_of(session, tenant=tenant, comparison_id=comparison_id)
    if any(job.status not in FINISHED for job in jobs):
        await note(session, Action.COMPARISON_CANCELLED, comparison_id)
    for job in jobs:
        # Checked again under its lock: it may have ended in between.
        if job.status not in FINISHED:
            await _cancel_unless_finished(session, tenant=tenant, job_id=job.id)
    return ComparisonView.of(comparison, await jobs_of(session, tenant=tenant, comparison_id=comparison_id))


async def delete_comparison(session: AsyncSession, *, tenant: str, comparison_id: str) -> None:
    """Cancel its unfinished jobs and delete the comparison. Its jobs and their results stay. Raises Problem 404."""
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
