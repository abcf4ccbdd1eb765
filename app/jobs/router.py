"""``/v1/jobs``: HTTP only; what happens is in ``service``, what is read in ``queries``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from app.access.auth import is_valid
from app.access.quotas import admit
from app.db import pipeline as direct
from app.db.engine import release
from app.deps import DoorbellDep, JobsReader, JobsWriter, ServiceDep, SessionDep, actor_of
from app.jobs import deletion, queries, service
from app.jobs.creation import create_job
from app.jobs.events import events_after
from app.jobs.fork import ForkRequest, forked, pins_of
from app.jobs.schemas import (
    AttemptList,
    AttemptView,
    Deleted,
    EventPage,
    EventView,
    JobDeletion,
    JobQuery,
    JobView,
    LayerPage,
    LayerView,
)
from app.jobs.stream import stream_events
from app.jobs.text_log import lines_of
from app.plans.agreement import NOTHING_AGREED, agree, guard_creation, needs_reading
from app.plans.schemas import JobRequest
from app.web import problems
from app.web.idempotency import IdempotencyKey, Made, Once
from app.web.negotiation import choose
from app.web.paging import Page
from app.web.problems import Problem, documented
from core.contract.events import TERMINAL
from core.crash_points import reach

EVENT_STREAM = "text/event-stream"
MAX_SEQ = 2**63 - 1
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "",
    status_code=201,
    response_model=JobView,
    responses=documented(
        *problems.CREATION_REFUSED,
        problems.PLAN_NOT_FOUND,
        problems.PLAN_MISMATCH,
        problems.PLAN_REFUSED,
        problems.PLAN_OUTDATED,
    ),
)
async def create(
    spec: JobRequest,
    request: Request,
    caller: JobsWriter,
    parts: ServiceDep,
    doorbell: DoorbellDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Queue a quantization. The answer is the job; follow it at `/v1/jobs/{id}/events`."""
    settings, tenant = parts.settings, caller.tenant
    body = spec.model_dump(mode="json", exclude=set() if spec.plan else {"plan"})
    once = Once.of(tenant, idempotency_key, "POST /v1/jobs", body)
    agreed = NOTHING_AGREED
    if needs_reading(spec):
        kept = await once.kept(parts.sessions)
        if kept is not None:
            return kept
        async with parts.reading(request, caller), parts.sessions_of(caller)() as session:
            agreed = await agree(session, tenant=tenant, spec=spec, settings=settings, storage=parts.storage)
    uploads = await parts.meter.unfinished(tenant)

    async def make() -> Made:
        await admit(transaction, tenant=tenant, settings=settings, meter=parts.meter, uploads=uploads)
        job = await create_job(
            transaction,
            actor=actor_of(request),
            spec=spec,
            settings=settings,
            progress=agreed.progress,
            plan=agreed.estimate,
        )
        doorbell.ring_later(job.id)
        reach("create.before_commit")
        return Made(JobView.of(job), f"/v1/jobs/{job.id}")

    async with direct.transaction(parts.sessions, tenant) as transaction:
        return await once.answer(transaction, response, make)


@router.post(
    "/{job_id}/fork",
    status_code=201,
    response_model=JobView,
    responses=documented(*problems.CREATION_REFUSED, problems.NOT_FOUND),
)
async def fork(
    job_id: str,
    wanted: ForkRequest,
    request: Request,
    caller: JobsWriter,
    session: SessionDep,
    parts: ServiceDep,
    doorbell: DoorbellDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """A job with the same spec but for what the body changes. It takes over what the first one computed where nothing
    before it differs: calibration always, finished blocks when what is computed is the same. The bytes are those of the
    same job without a first one."""
    settings, tenant = parts.settings, caller.tenant
    once = Once.of(tenant, idempotency_key, f"POST /v1/jobs/{job_id}/fork", wanted.changes)
    kept = await once.kept(parts.sessions)
    if kept is not None:
        return kept
    async with parts.reading(request, caller):
        parent, spec = await forked(session, tenant=tenant, job_id=job_id, request=wanted)
        agreed = await guard_creation(session, tenant=tenant, spec=spec, settings=settings, storage=parts.storage)
    await release(session)
    uploads = await parts.meter.unfinished(tenant)
    transaction = await direct.joined(session)

    async def make() -> Made:
        await admit(transaction, tenant=tenant, settings=settings, meter=parts.meter, uploads=uploads)
        job = await create_job(
            transaction,
            actor=actor_of(request),
            spec=spec,
            settings=settings,
            progress=pins_of(parent, spec),
            plan=agreed.estimate,
            forked_from=parent.id,
        )
        doorbell.ring_later(job.id)
        return Made(JobView.of(job), f"/v1/jobs/{job.id}")

    return await once.answer(transaction, response, make)


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def list_jobs(query: Annotated[JobQuery, Query()], caller: JobsReader, parts: ServiceDep) -> Page[JobView]:
    """Jobs, newest first."""
    rows, cursor = await queries.page_of_jobs(parts.sessions, tenant=caller.tenant, query=query, keyring=parts.keyring)
    return Page(data=[JobView.of(row) for row in rows], has_more=cursor is not None, next_cursor=cursor)


@router.delete("/{job_id}", status_code=204, responses=documented(problems.NOT_FOUND, problems.JOB_NOT_FINISHED))
async def delete(job_id: str, caller: JobsWriter, session: SessionDep, parts: ServiceDep) -> None:
    """Remove a finished job with its artifacts, events and blocks. Its figures stay in the usage. What unfinished forks
    and jobs of its comparison take over from it is kept until they have ended."""
    await deletion.delete_job(session, tenant=caller.tenant, job_id=job_id)
    parts.meter.forget(caller.tenant)


@router.get("/{job_id}", responses=documented(problems.NOT_FOUND))
async def get(job_id: str, caller: JobsReader, parts: ServiceDep) -> JobView:
    """One job as it stands: status, phase, progress, estimate of the time left, verdict, error."""
    return JobView.of(await queries.find_job(parts.sessions, tenant=caller.tenant, job_id=job_id))


@router.post(":delete", responses=documented())
async def delete_many(wanted: JobDeletion, caller: JobsWriter, session: SessionDep, parts: ServiceDep) -> Deleted:
    """Remove finished jobs by id or by filter, at most a thousand at once; jobs that have not finished stay."""
    deleted, has_more = await deletion.delete_many(session, tenant=caller.tenant, wanted=wanted)
    parts.meter.forget(caller.tenant)
    return Deleted(deleted=deleted, has_more=has_more)


@router.post("/{job_id}/cancel", responses=documented(problems.NOT_FOUND, problems.JOB_FINISHED))
async def cancel(job_id: str, caller: JobsWriter, session: SessionDep) -> JobView:
    """Stop the job. A running one is `cancelling` until its worker has let go. Asking again changes nothing."""
    return JobView.of(await service.cancel_job(session, tenant=caller.tenant, job_id=job_id))


@router.post(
    "/{job_id}/retry",
    responses=documented(
        problems.NOT_FOUND,
        problems.JOB_NOT_RETRYABLE,
        problems.DATASET_NOT_FOUND,
        problems.DATASET_EXPIRED,
        problems.TOO_MANY_QUEUED_JOBS,
    ),
)
async def retry(
    job_id: str, caller: JobsWriter, session: SessionDep, parts: ServiceDep, doorbell: DoorbellDep
) -> JobView:
    """Queue a failed or cancelled job again; it goes on after its last finished block."""
    job = await service.retry_job(session, tenant=caller.tenant, job_id=job_id, settings=parts.settings)
    doorbell.ring_later(job.id)
    return JobView.of(job)


@router.head("/{job_id}/events", include_in_schema=False)
@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    responses={
        **documented(problems.NOT_FOUND, problems.MALFORMED_REQUEST, problems.NOT_ACCEPTABLE),
        200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}},
        204: {"description": "As an event stream: the job has ended and the client has seen everything."},
    },
)
async def events(
    job_id: str,
    request: Request,
    caller: JobsReader,
    session: SessionDep,
    parts: ServiceDep,
    after: Annotated[int, Query(ge=0, le=MAX_SEQ, description="Only events with a greater `seq`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_event_id: Annotated[str | None, Header(description="Of a stream: the last event seen.")] = None,
) -> Any:
    """What happened to the job: pages by `seq`; with `Accept: text/event-stream` a live stream that ends after the
    terminal event."""
    job = await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    wanted = choose(request.headers.get("accept"), ("application/json", EVENT_STREAM))
    if wanted is None:
        raise Problem(problems.NOT_ACCEPTABLE, f"events come as application/json or {EVENT_STREAM}")
    if wanted == EVENT_STREAM:
        seen = _event_id(last_event_id) if last_event_id else after
        if seen > job.event_seq:
            raise Problem(problems.MALFORMED_REQUEST, f"event {seen} is not there: the last is {job.event_seq}")
        last = await events_after(session, job_id=job_id, seq=job.event_seq - 1, limit=1)
        if seen == job.event_seq and last and last[0].type in TERMINAL:
            return Response(status_code=204)  # what tells a browser's EventSource not to come back
        headers = {"Cache-Control": "no-store", "Vary": "Accept", "X-Accel-Buffering": "no"}
        stream = stream_events(
            parts.feed,
            parts.sessions_of(caller),
            tenant=caller.tenant,
            job_id=job_id,
            after=seen,
            still_allowed=lambda: is_valid(parts.sessions, caller),
        )
        if request.method == "HEAD":  # which would otherwise wait for the job's end
            return StreamingResponse(iter(()), media_type=EVENT_STREAM, headers=headers)
        return StreamingResponse(stream, media_type=EVENT_STREAM, headers=headers)
    rows = await events_after(session, job_id=job_id, seq=after, limit=limit + 1)
    views = [EventView.of(row) for row in rows[:limit]]
    return EventPage(data=views, has_more=len(rows) > limit, next_after=views[-1].seq if views else after)


@router.get(
    "/{job_id}/logs",
    response_class=PlainTextResponse,
    responses={**documented(problems.NOT_FOUND), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def logs(
    job_id: str,
    caller: JobsReader,
    session: SessionDep,
    tail: Annotated[int, Query(ge=1, le=10_000, description="So many of the last lines.")] = 1000,
) -> PlainTextResponse:
    """The events as text, a line each, oldest first."""
    job = await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    rows = await events_after(session, job_id=job_id, seq=max(0, job.event_seq - tail), limit=tail)
    return PlainTextResponse(lines_of(rows), headers={"Cache-Control": "no-store"})


@router.get("/{job_id}/layers", responses=documented(problems.NOT_FOUND))
async def layers(
    job_id: str,
    caller: JobsReader,
    session: SessionDep,
    after: Annotated[int, Query(ge=-1, le=1_000_000, description="Only blocks with a greater number.")] = -1,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> LayerPage:
    """The errors of every input group, as its block is finished."""
    await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    rows = await queries.layers_after(session, job_id=job_id, block=after, limit=limit + 1)
    return LayerPage(data=[LayerView.of(row) for row in rows[:limit]], has_more=len(rows) > limit)


@router.get("/{job_id}/attempts", responses=documented(problems.NOT_FOUND))
async def attempts(job_id: str, caller: JobsReader, session: SessionDep) -> AttemptList:
    """Who ran the job, why each attempt ended, and where it resumed."""
    await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    rows = await queries.attempts_of(session, job_id=job_id)
    return AttemptList(data=[AttemptView.of(row) for row in rows])


def _event_id(value: str) -> int:
    if value.isascii() and value.isdecimal() and len(value) <= 19 and int(value) <= MAX_SEQ:
        return int(value)
    raise Problem(problems.MALFORMED_REQUEST, "Last-Event-ID: the number of an event is needed")
