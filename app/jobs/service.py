"""What can be done to a job: create, cancel, retry. The states allow it or a Problem says why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app import problems, tracing
from app.audit.service import Action, note
from app.contract.events import EventType
from app.contract.ids import new_id
from app.contract.spec import JobSpec
from app.contract.states import FINISHED, TRANSITIONS, JobStatus
from app.contract.tables import Job
from app.datasets.expiry import state_of, what_is_wrong
from app.jobs.events import append_event
from app.jobs.queries import dataset_for_job, get_job
from app.logs import EXTRA
from app.problems import Problem
from app.quotas import check_queue
from app.settings import Settings

LOCAL = "local/"
log = logging.getLogger(__name__)
UPLOADED = "ds_"


async def create_job(
    session: AsyncSession,
    *,
    tenant: str,
    spec: JobSpec,
    settings: Settings,
    progress: Mapping[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    forked_from: str | None = None,
    comparison_id: str | None = None,
) -> Job:
    """``progress``: commits that the job is to keep to; ``plan``: what was estimated; ``forked_from``,
    ``comparison_id``: whose files the job may take over.

    Raises Problem 422 for a local model or an uploaded dataset that is not there, or not any more. Hub ids are left to
    the worker.
    """
    if spec.model.id.startswith(LOCAL):
        _check_local_model(spec.model.id, settings.model_root)
    await check_queue(session, tenant=tenant, settings=settings)
    await _check_dataset(session, tenant=tenant, dataset=spec.calibration.dataset)
    job = Job(
        id=new_id("job"),
        tenant=tenant,
        name=spec.name,
        alias=spec.alias,
        labels=spec.labels,
        spec=spec.model_dump(mode="json", include=set(JobSpec.model_fields) - {"alias"}),
        progress=dict(progress or {}),
        plan=plan,
        forked_from=forked_from,
        comparison_id=comparison_id,
        model_id=spec.model.id,
        method=spec.method,
        scheme=spec.scheme,
        trace_context=tracing.current().carrier,
    )
    tracing.current().note({"qe.job.id": job.id, "qe.model": job.model_id, "qe.scheme": job.scheme})
    session.add(job)
    await session.flush()
    data = {"model": spec.model.id, "dataset": spec.calibration.dataset, "scheme": spec.scheme, "method": spec.method}
    data |= {"forked_from": forked_from} if forked_from else {}
    await append_event(session, job_id=job.id, kind=EventType.CREATED, data=data)
    await note(session, Action.JOB_CREATED, job.id, model=spec.model.id, scheme=spec.scheme)
    await session.refresh(job)
    # The line that leads from a request to everything that its job's workers log.
    log.info("job queued", extra={EXTRA: {"job_id": job.id, "tenant": tenant, "model": spec.model.id}})
    return job


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
    await check_queue(session, tenant=tenant, settings=settings)
    await _check_dataset(session, tenant=tenant, dataset=job.spec["calibration"]["dataset"])
    # The attempts to come belong to the request that made the job, as the ones before; this request is beside it.
    tracing.current().link(job.trace_context)
    now = func.clock_timestamp()
    job.status = JobStatus.QUEUED
    job.phase = job.worker = job.error = job.started_at = job.finished_at = job.rung_at = None
    job.queued_at = job.run_after = now
    job.barren_attempts = 0
    await session.flush()
    await append_event(session, job_id=job_id, kind=EventType.RETRIED, data={"blocks_done": job.blocks_done})
    await note(session, Action.JOB_RETRIED, job_id)
    await session.refresh(job)
    return job


def _check_local_model(model_id: str, root: Path | None) -> None:
    """``local/<directory>`` names a directory directly below the model root, links followed, or nothing."""
    if root is None:
        detail = "this service has no local models: QE_MODEL_ROOT is not set"
    elif not root.is_dir():
        return  # the root is mounted where the worker runs, not here; the worker will look
    else:
        directory = (root / model_id.removeprefix(LOCAL)).resolve()
        if directory.is_dir() and directory.is_relative_to(root.resolve()):
            return
        detail = f"no directory {model_id.removeprefix(LOCAL)!r} below the service's model root"
    raise Problem(problems.MODEL_NOT_FOUND, detail, errors=[{"pointer": "/model/id", "detail": detail}])


async def _check_dataset(session: AsyncSession, *, tenant: str, dataset: str) -> None:
    if not dataset.startswith(UPLOADED):
        return
    kind = problems.DATASET_NOT_FOUND
    found = await dataset_for_job(session, tenant=tenant, dataset_id=dataset)
    if found is None:
        detail = f"no dataset {dataset!r}: upload it with POST /v1/datasets"
    elif (wrong := what_is_wrong(found)) is not None:
        detail = wrong
        kind = problems.DATASET_EXPIRED if state_of(found) == "expired" else kind
    else:
        return
    raise Problem(kind, detail, errors=[{"pointer": "/calibration/dataset", "detail": detail}])
