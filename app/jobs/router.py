"""``/v1/jobs``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse

from app.deps import JobsReader, JobsWriter, NotifierDep, ServiceDep, SessionDep
from app.jobs import deletion, queries, service, stream
from app.jobs.events import events_after
from app.jobs.feed import FeedDep
from app.jobs.fork import ForkRequest
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
from app.jobs.stream import EVENT_STREAM
from app.jobs.text_log import lines_of
from app.plans.schemas import JobRequest
from app.web import problems
from app.web.idempotency import IdempotencyKey
from app.web.negotiation import choose
from app.web.paging import Page
from app.web.problems import Problem, documented

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "",
    status_code=201,
    response_model=JobView,
    responses=documented(
        *problems.CREATION_REFUSED,
        *problems.PUSH_REFUSED,
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
    deps: ServiceDep,
    notifier: NotifierDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Queue a quantization. The answer is the job; follow it at `/v1/jobs/{id}/events`."""
    created = await service.submit_job(request, caller, deps, notifier, spec=spec, idempotency_key=idempotency_key)
    return created.answer(response)


@router.post(
    "/{job_id}/fork",
    status_code=201,
    response_model=JobView,
    responses=documented(*problems.CREATION_REFUSED, problems.NOT_FOUND),
)
async def fork(
    job_id: str,
    changes: ForkRequest,
    request: Request,
    caller: JobsWriter,
    session: SessionDep,
    deps: ServiceDep,
    notifier: NotifierDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """A job with the same spec but for what the body changes. It takes over what the first one computed where nothing
    before it differs: calibration always, finished blocks when what is computed is the same. The bytes are those of the
    same job without a first one."""
    created = await service.fork_job(
        request, caller, session, deps, notifier, job_id=job_id, changes=changes, idempotency_key=idempotency_key
    )
    return created.answer(response)


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def list_jobs(query: Annotated[JobQuery, Query()], caller: JobsReader, deps: ServiceDep) -> Page[JobView]:
    """Jobs, newest first."""
    return await service.list_jobs(caller, deps, query)


@router.delete("/{job_id}", status_code=204, responses=documented(problems.NOT_FOUND, problems.JOB_NOT_FINISHED))
async def delete(job_id: str, caller: JobsWriter, session: SessionDep, deps: ServiceDep) -> None:
    """Remove a finished job with its artifacts, events and blocks. Its figures stay in the usage. What unfinished forks
    and jobs of its comparison take over from it is kept until they have ended."""
    await deletion.delete_job(session, tenant=caller.tenant, job_id=job_id, meter=deps.meter)


@router.get("/{job_id}", responses=documented(problems.NOT_FOUND))
async def get(job_id: str, caller: JobsReader, deps: ServiceDep) -> JobView:
    """One job as it stands: status, phase, progress, estimate of the time left, verdict, error."""
    return JobView.of(await queries.get_job_row(deps.sessions, tenant=caller.tenant, job_id=job_id))


@router.post(":delete", responses=documented())
async def delete_many(which: JobDeletion, caller: JobsWriter, session: SessionDep, deps: ServiceDep) -> Deleted:
    """Remove finished jobs by id or by filter, at most a thousand at once; jobs that have not finished stay."""
    return await deletion.delete_many(session, tenant=caller.tenant, which=which, meter=deps.meter)


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
    job_id: str, caller: JobsWriter, session: SessionDep, deps: ServiceDep, notifier: NotifierDep
) -> JobView:
    """Queue a failed or cancelled job again; it goes on after its last finished block."""
    job = await service.retry_job(session, tenant=caller.tenant, job_id=job_id, settings=deps.settings)
    notifier.notify_later(job.id)
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
    deps: ServiceDep,
    feed: FeedDep,
    after: Annotated[int, Query(ge=0, le=stream.MAX_SEQ, description="Only events with a greater `seq`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_event_id: Annotated[str | None, Header(description="Number of the last event seen in a stream.")] = None,
) -> Any:
    """What happened to the job: pages by `seq`; with `Accept: text/event-stream` a live stream that ends after the
    terminal event."""
    job = await queries.get_job(session, tenant=caller.tenant, job_id=job_id)
    media_type = choose(request.headers.get("accept"), ("application/json", EVENT_STREAM))
    if media_type is None:
        raise Problem(problems.NOT_ACCEPTABLE, f"events come as application/json or {EVENT_STREAM}")
    if media_type == EVENT_STREAM:
        last = stream.event_id(last_event_id) if last_event_id else after
        return await stream.respond(request, caller, session, deps, feed, job=job, after=last)
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
    tail: Annotated[int, Query(ge=1, le=10_000, description="How many of the last lines.")] = 1000,
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
