"""What can be done with jobs: submit, fork, list, cancel, retry. The states allow it, or a Problem says why not."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller
from app.access.quotas import admit, admit_to_queue
from app.audit.service import Action, note
from app.datasets.queries import lock_usable_datasets
from app.db import pipeline
from app.db.engine import release
from app.db.pipeline import Transaction
from app.deps import Service, actor_of
from app.jobs.creation import create_job
from app.jobs.events import append_event
from app.jobs.fork import ForkRequest, fork_spec, pinned_commits
from app.jobs.queries import get_job, page_of_job_rows
from app.jobs.schemas import JobQuery, JobView
from app.plans.agreement import NO_AGREEMENT, agree, check_fits_workers, needs_reading
from app.plans.schemas import JobRequest
from app.pushes.service import add_pushes, check_scope
from app.web import problems
from app.web.idempotency import Created, Idempotency, Outcome, new_id_of
from app.web.paging import Page, as_page
from app.web.problems import Problem
from app.web.wakeups import RequestNotifier
from core import tracing
from core.contract.events import EventType
from core.contract.spec import JobSpec
from core.crash_points import reach
from core.ledger import transitions
from core.ledger.states import FINISHED, TRANSITIONS, JobStatus
from core.ledger.tables import Job
from core.settings import Settings


async def submit_job(
    request: Request,
    caller: Caller,
    deps: Service,
    notifier: RequestNotifier,
    *,
    spec: JobRequest,
    idempotency_key: str | None,
) -> Outcome:
    """Queue a job: agree on its plan, admit it, write it, and wake a worker after the commit.

    Raises Problem as ``agree``, ``admit``, ``create_job`` and ``add_pushes``.
    """
    settings, tenant = deps.settings, caller.tenant
    if spec.push_to:
        check_scope(caller)
    body = spec.model_dump(mode="json", exclude={name for name in ("plan", "push_to") if not getattr(spec, name)})
    idempotency = Idempotency.of(tenant, idempotency_key, "POST /v1/jobs", body)
    agreement = NO_AGREEMENT
    if needs_reading(spec):
        replay = await idempotency.replay(deps.sessions)
        if replay is not None:
            return replay
        async with deps.reading(request, caller), deps.sessions_of(caller)() as session:
            agreement = await agree(session, tenant=tenant, spec=spec, settings=settings, storage=deps.storage)
    uploads = await deps.meter.unfinished(tenant)

    async def create() -> Created:
        created = await _queue_job(
            request, deps, notifier, transaction, spec, uploads, progress=agreement.progress, plan=agreement.estimate
        )
        if spec.push_to:
            await add_pushes(
                transaction,
                actor_of(request),
                job_id=new_id_of(created),
                new=spec.push_to,
                exports=spec.exports or [],
                settings=settings,
                if_accepted=True,
                pointer="/push_to",
            )
        return created

    async with pipeline.transaction(deps.sessions, tenant) as transaction:
        return await idempotency.run(transaction, create)


async def fork_job(
    request: Request,
    caller: Caller,
    session: AsyncSession,
    deps: Service,
    notifier: RequestNotifier,
    *,
    job_id: str,
    changes: ForkRequest,
    idempotency_key: str | None,
) -> Outcome:
    """Queue a job with the spec of another and ``changes``. Raises as ``fork_spec``, ``check_fits_workers``,
    ``admit`` and ``create_job``."""
    settings, tenant = deps.settings, caller.tenant
    idempotency = Idempotency.of(tenant, idempotency_key, f"POST /v1/jobs/{job_id}/fork", changes.changes)
    replay = await idempotency.replay(deps.sessions)
    if replay is not None:
        return replay
    async with deps.reading(request, caller):
        parent, spec = await fork_spec(session, tenant=tenant, job_id=job_id, request=changes)
        agreement = await check_fits_workers(session, tenant=tenant, spec=spec, settings=settings, storage=deps.storage)
    await release(session)
    uploads = await deps.meter.unfinished(tenant)
    transaction = await pipeline.transaction_of(session)

    async def create() -> Created:
        progress, plan = pinned_commits(parent, spec), agreement.estimate
        return await _queue_job(
            request, deps, notifier, transaction, spec, uploads, progress=progress, plan=plan, forked_from=parent.id
        )

    return await idempotency.run(transaction, create)


async def _queue_job(
    request: Request,
    deps: Service,
    notifier: RequestNotifier,
    transaction: Transaction,
    spec: JobSpec,
    uploads: int,
    **origin: Any,
) -> Created:
    """Admit the job, write it, and wake a worker after the commit. ``uploads``: bytes of the tenant's unfinished
    uploads. Raises Problem as ``admit`` and ``create_job``."""
    actor = actor_of(request)
    await admit(transaction, tenant=actor.tenant, settings=deps.settings, meter=deps.meter, uploads=uploads)
    job = await create_job(transaction, actor=actor, spec=spec, settings=deps.settings, **origin)
    notifier.notify_later(job.id)
    reach("create.before_commit")
    return Created(JobView.of(job), f"/v1/jobs/{job.id}")


async def list_jobs(caller: Caller, deps: Service, query: JobQuery) -> Page[JobView]:
    """Newest first. Raises Problem for a cursor of another listing."""
    rows, cursor = await page_of_job_rows(deps.sessions, tenant=caller.tenant, query=query, signer=deps.keyring)
    return as_page(rows, cursor, JobView.of)


async def cancel_job(session: AsyncSession, *, tenant: str, job_id: str) -> Job:
    """Cancel a queued job, or ask the worker of a running one to stop. Idempotent. Raises Problem 404, or 409 when the
    job has finished."""
    job = await get_job(session, tenant=tenant, job_id=job_id, lock=True)
    if job.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
        return job
    if job.status in FINISHED:
        raise Problem(problems.JOB_FINISHED, f"job {job_id} has {job.status} and cannot be cancelled")
    await append_event(session, job_id=job_id, kind=EventType.CANCEL_REQUESTED, data={})
    transaction = await pipeline.transaction_of(session)
    if job.status == JobStatus.QUEUED:
        await transaction.run(pipeline.Statement(transitions.CANCEL_QUEUED, {"job_id": job_id}))
        await append_event(session, job_id=job_id, kind=EventType.CANCELLED, data={"attempt": job.attempt})
    else:
        await transaction.run(pipeline.Statement(transitions.REQUEST_CANCEL, {"job_id": job_id}))
    await note(session, Action.JOB_CANCELLED, job_id)
    await session.flush()
    await session.refresh(job)
    return job


async def retry_job(session: AsyncSession, *, tenant: str, job_id: str, settings: Settings) -> Job:
    """Queue a failed or cancelled job again; finished blocks are not computed again.

    ``progress`` stays: it holds the commits that the first attempt resolved, and the finished blocks depend on them.
    Raises Problem: 404, 409 for another status, 429 as ``admit_to_queue``, 422 as ``lock_usable_datasets``.
    """
    job = await get_job(session, tenant=tenant, job_id=job_id, lock=True)
    if JobStatus.QUEUED not in TRANSITIONS[JobStatus(job.status)] or job.status not in FINISHED:
        raise Problem(
            problems.JOB_NOT_RETRYABLE, f"job {job_id} is {job.status}; only failed or cancelled can be retried"
        )
    transaction = await pipeline.transaction_of(session)
    await admit_to_queue(transaction, tenant=tenant, settings=settings)
    await lock_usable_datasets(transaction, tenant=tenant, spec=job.spec)
    # Attempts belong to the trace of the request that created the job; this request is linked to it.
    tracing.current().link(job.trace_context)
    await transaction.run(pipeline.Statement(transitions.RETRY, {"job_id": job_id}))
    await append_event(session, job_id=job_id, kind=EventType.RETRIED, data={"blocks_done": job.blocks_done})
    await note(session, Action.JOB_RETRIED, job_id)
    await session.refresh(job)
    return job
