"""What can be done to a job that is there: cancel, retry. The states allow it or a Problem says why not."""

from __future__ import annotations

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.quotas import admit_to_queue
from app.audit.service import Action, note
from app.db.pipeline import joined
from app.jobs.creation import check_dataset
from app.jobs.events import append_event
from app.jobs.queries import get_job
from app.web import problems
from app.web.problems import Problem
from core import tracing
from core.contract.events import EventType
from core.ledger.states import FINISHED, TRANSITIONS, JobStatus
from core.ledger.tables import Job
from core.settings import Settings


async def cancel_job(session: AsyncSession, *, tenant: str, job_id: str) -> Job:
    """A queued job is cancelled here and now; a running one is asked to stop. Doing it twice changes nothing."""
    job = await get_job(session, tenant=tenant, job_id=job_id, lock=True)
    if job.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
        return job
    if job.status in FINISHED:
        raise Problem(problems.JOB_FINISHED, f"job {job_id} has {job.status} and cannot be cancelled")
    await append_event(session, job_id=job_id, kind=EventType.CANCEL_REQUESTED, data={})
    if job.status == JobStatus.QUEUED:
        job.status = JobStatus.CANCELLED
        job.finished_at = func.clock_timestamp()
        await append_event(session, job_id=job_id, kind=EventType.CANCELLED, data={"attempt": job.attempt})
    else:
        job.status = JobStatus.CANCELLING
    await note(session, Action.JOB_CANCELLED, job_id)
    await session.flush()
    await session.refresh(job)
    return job


async def retry_job(session: AsyncSession, *, tenant: str, job_id: str, settings: Settings) -> Job:
    """Queue a failed or cancelled job again; the blocks that it finished are not computed again.

    ``progress`` stays: it holds the commits to which the first attempt resolved the hub ids, and the finished blocks
    are only good for those.
    """
    job = await get_job(session, tenant=tenant, job_id=job_id, lock=True)
    if JobStatus.QUEUED not in TRANSITIONS[JobStatus(job.status)] or job.status not in FINISHED:
        raise Problem(
            problems.JOB_NOT_RETRYABLE, f"job {job_id} is {job.status}; only failed or cancelled can be retried"
        )
    transaction = await joined(session)
    await admit_to_queue(transaction, tenant=tenant, settings=settings)
    await check_dataset(transaction, tenant=tenant, dataset=job.spec["calibration"]["dataset"])
    # The attempts to come belong to the request that made the job, as the ones before; this request is beside it.
    tracing.current().link(job.trace_context)
    now = func.clock_timestamp()
    job.status = JobStatus.QUEUED
    job.phase = job.worker = job.error = job.started_at = job.finished_at = job.rung_at = None
    job.queued_at = job.run_after = now
    job.barren_attempts = 0
    job.avoid = []
    await session.flush()
    await append_event(session, job_id=job_id, kind=EventType.RETRIED, data={"blocks_done": job.blocks_done})
    await note(session, Action.JOB_RETRIED, job_id)
    await session.refresh(job)
    return job
