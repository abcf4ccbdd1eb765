"""The dashboard's list of jobs and the page of one job."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Scope
from app.access.quotas import job_quota
from app.artifacts.schemas import ArtifactView
from app.artifacts.service import send_archive, send_file, send_report
from app.deps import NotifierDep, Service, ServiceDep, SessionDep
from app.jobs import deletion, queries, service, stream
from app.jobs.events import events_after
from app.jobs.feed import FeedDep
from app.jobs.schemas import AttemptView, EventView, JobDeletion, JobFilter, JobQuery, JobView
from app.pushes.service import list_pushes
from app.system.service import list_workers
from app.ui import forms, history, outcome
from app.ui.advice import advice
from app.ui.error_chart import error_chart
from app.ui.navigation import first_page
from app.ui.pages import Page, redirect_to, render
from app.ui.sign_in import AnyUser, JobsReader, JobsWriter, User, checked_form
from app.web import problems
from app.web.paging import PageQuery
from app.web.problems import Problem
from core.ledger.states import FINISHED, JobStatus

LATEST_EVENTS = 200
MOST_PUSHES = 20
"""Pushes on the page of a job; the API has all of them."""
FIELDS = ("model", "scheme", "label", "alias")
"""Fields of the filter form, beside the statuses."""
REPORT = "quality_report.html"
router = APIRouter(route_class=Page)


@router.get("/")
async def jobs(request: Request, user: AnyUser, session: SessionDep, deps: ServiceDep) -> Response:
    """The start page. A key that may not read jobs is redirected to the first page that it may read."""
    if not user.may(Scope.JOBS_READ):
        return redirect_to(first_page(user.caller))
    parameters = {name: request.query_params.getlist(name) for name in request.query_params}
    query, wrong = _query({name: [value for value in values if value] for name, values in parameters.items()})
    now = await job_quota(session, tenant=user.caller.tenant, settings=deps.settings)
    page = await service.list_jobs(user.caller, deps, query)
    others = urlencode(query.model_dump(mode="json", exclude_unset=True, exclude={"cursor", "status"}), doseq=True)
    return render(
        request, "jobs.html", user, status=422 if wrong else 200, jobs=[] if wrong else page.data,
        next_cursor=page.next_cursor, query=query, filtered=bool(query.model_fields_set - {"cursor"}), wrong=wrong,
        values={name: parameters.get(name, [""])[-1] for name in FIELDS}, statuses=list(JobStatus), again=_again(query),
        live=any(job.status not in FINISHED for job in page.data), base=_base(request), others=others,
        tabs=_tabs(now.queued, now.running), known=query.status in [statuses for _, statuses, _ in _tabs(0, 0)],
    )  # fmt: skip


def _tabs(queued: int, running: int) -> list[tuple[str, list[JobStatus], int | None]]:
    """Frequent filters: (title, statuses, current number)."""
    return [
        ("All", [], None),
        ("At work", [JobStatus.RUNNING, JobStatus.CANCELLING], running),
        ("Waiting", [JobStatus.QUEUED], queued),
        ("Failed", [JobStatus.FAILED], None),
        ("Succeeded", [JobStatus.SUCCEEDED], None),
        ("Cancelled", [JobStatus.CANCELLED], None),
    ]


@router.get("/jobs/{job_id}")
async def job(request: Request, job_id: str, user: JobsReader, session: SessionDep, deps: ServiceDep) -> Response:
    return await job_page(request, user, session, deps, job_id=job_id)


async def job_page(
    request: Request,
    user: User,
    session: AsyncSession,
    deps: Service,
    *,
    job_id: str,
    values: Mapping[str, Any] | None = None,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    """The page of a job. ``values`` and ``wrong``: of the form of a push that was refused. Raises Problem 404."""
    row = await queries.get_job(session, tenant=user.caller.tenant, job_id=job_id)
    view = JobView.of(row)
    step = math.ceil(row.blocks_done / queries.MOST_BLOCKS) or 1
    blocks = await queries.block_errors(session, job_id=job_id, step=step)
    attempts = [AttemptView.of(one) for one in await queries.attempts_of(session, job_id=job_id)]
    first = max(0, row.event_seq - LATEST_EVENTS)
    rows = await events_after(session, job_id=job_id, seq=first, limit=LATEST_EVENTS + 1)
    events = history.one_of_a_kind([EventView.of(one) for one in reversed(rows)])
    files = [ArtifactView.of(one) for one in await queries.artifacts_of(session, job_id=job_id)]
    waits = view.status == JobStatus.QUEUED and user.may(Scope.WORKERS_READ)
    pushes = await list_pushes(
        session, tenant=row.tenant, job_id=job_id, query=PageQuery(limit=MOST_PUSHES), signer=deps.keyring
    )
    workers = (await list_workers(session, tenant=row.tenant, settings=deps.settings)).data if waits else []
    return render(
        request, "job.html", user, status=422 if wrong else 200, pushes=pushes.data, values=values or {},
        wrong=wrong or {}, pushing=any(push.finished_at is None for push in pushes.data),
        job=view, spec=row.spec, blocks=blocks, held=attempts, files=files,
        sentences=history.attempts(attempts), happened=events, earlier=first,
        chart=error_chart(blocks, view.progress.blocks_total), last_event=row.event_seq,
        live=view.status not in FINISHED, has_report=any(file.name == REPORT for file in files),
        base=_base(request), queue=history.queue(workers) if waits else None,
        step=step,
        advice=advice(view.error.code) if view.error else "",
        sentence=outcome.sentence(view), snippet=outcome.snippet(view, base=_base(request)),
    )  # fmt: skip


@router.post("/jobs/{job_id}/cancel")
async def cancel(request: Request, job_id: str, user: JobsWriter, session: SessionDep) -> Response:
    await checked_form(request, user)
    await service.cancel_job(session, tenant=user.caller.tenant, job_id=job_id)
    return redirect_to(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/retry")
async def retry(
    request: Request, job_id: str, user: JobsWriter, session: SessionDep, deps: ServiceDep, notifier: NotifierDep
) -> Response:
    await checked_form(request, user)
    await service.retry_job(session, tenant=user.caller.tenant, job_id=job_id, settings=deps.settings)
    notifier.notify_later(job_id)
    return redirect_to(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/delete")
async def delete(request: Request, job_id: str, user: JobsWriter, session: SessionDep, deps: ServiceDep) -> Response:
    await checked_form(request, user)
    await deletion.delete_job(session, tenant=user.caller.tenant, job_id=job_id, meter=deps.meter)
    return redirect_to("/")


@router.post("/jobs/delete")
async def delete_many(request: Request, user: JobsWriter, session: SessionDep, deps: ServiceDep) -> Response:
    """Delete the finished jobs of the page's filter, at most a thousand."""
    form = await checked_form(request, user)
    query, wrong = _query(parse_qs(str(form.get("filter", ""))))
    if wrong:
        raise Problem(problems.INVALID_REQUEST, "the filter of the page is not valid")
    filters = query.model_dump(exclude_unset=True, include=set(JobFilter.model_fields))
    which = JobDeletion.model_validate(filters or {"status": sorted(FINISHED)})
    await deletion.delete_many(session, tenant=user.caller.tenant, which=which, meter=deps.meter)
    return redirect_to("/" + (f"?{form['filter']}" if filters else ""))


@router.get("/jobs/{job_id}/events")
async def events(
    request: Request,
    job_id: str,
    user: JobsReader,
    session: SessionDep,
    deps: ServiceDep,
    feed: FeedDep,
    after: Annotated[int, Query(ge=0, le=stream.MAX_SEQ)] = 0,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Any:
    """The event stream of the job, for a session instead of a key."""
    row = await queries.get_job(session, tenant=user.caller.tenant, job_id=job_id)
    after = stream.event_id(last_event_id) if last_event_id else after
    return await stream.respond(request, user.caller, session, deps, feed, job=row, after=after)


@router.get("/jobs/{job_id}/report")
async def report(request: Request, job_id: str, user: JobsReader, session: SessionDep, deps: ServiceDep) -> Response:
    """The quality report as a page. Our pages may frame it; it runs and loads nothing."""
    response = await send_report(request, user.caller, session, deps, job_id=job_id, media_type="text/html")
    policy = response.headers["Content-Security-Policy"]
    response.headers["Content-Security-Policy"] = f"{policy}; frame-ancestors 'self'"
    return response


@router.get("/jobs/{job_id}/files/{name:path}")
async def download(
    request: Request, job_id: str, name: str, user: JobsReader, session: SessionDep, deps: ServiceDep
) -> Response:
    return await send_file(request, user.caller, session, deps, job_id=job_id, name=name)


@router.get("/jobs/{job_id}/archive")
async def archive(request: Request, job_id: str, user: JobsReader, session: SessionDep, deps: ServiceDep) -> Response:
    return await send_archive(request, user.caller, session, deps, job_id=job_id)


def _query(parameters: Mapping[str, Sequence[str]]) -> tuple[JobQuery, dict[str, str]]:
    """The filters of the listing, and errors by field of the form; with errors there is no filter. Empty fields are
    ignored. Raises Problem 422 for parameters that are not in the form."""
    many = ("status", "label")
    fields: dict[str, Any] = {name: list(v) if name in many else v[-1] for name, v in parameters.items() if v}
    try:
        return JobQuery.model_validate(fields), {}
    except ValidationError as error:
        wrong = forms.invalid(error.errors(include_url=False))
    if set(wrong) <= set(FIELDS):
        return JobQuery(), wrong
    raise Problem(problems.INVALID_REQUEST, "; ".join(f"{name}: {sentence}" for name, sentence in wrong.items()))


def _base(request: Request) -> str:
    """The URL of the service in the commands that a page shows."""
    return str(request.base_url).rstrip("/")


def _again(query: JobQuery) -> str:
    """The filters as a query string, for the link to the next page."""
    return urlencode(query.model_dump(mode="json", exclude_unset=True, exclude={"cursor"}), doseq=True)
