"""The dashboard's list of jobs and the page of one: what the routes of ``/v1/jobs`` give and do, for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import ValidationError

from app.access.auth import Scope
from app.access.quotas import standing
from app.artifacts import router as artifacts
from app.artifacts.schemas import ArtifactView
from app.deps import DoorbellDep, ServiceDep, SessionDep
from app.jobs import queries
from app.jobs import router as api
from app.jobs.events import events_after
from app.jobs.schemas import AttemptView, EventView, JobDeletion, JobFilter, JobQuery, JobView
from app.system import router as system
from app.ui import forms, history, outcome
from app.ui.advice import advice
from app.ui.error_chart import error_chart
from app.ui.navigation import first_page
from app.ui.pages import Page, render, see
from app.ui.visitor import AnyVisitor, JobsReader, JobsWriter, form_of
from app.web import problems
from app.web.problems import Problem
from core.ledger.states import FINISHED, JobStatus

LATEST_EVENTS = 200
FIELDS = ("model", "scheme", "label", "alias")
"""Of the form of filters, beside the statuses."""
REPORT = "quality_report.html"
router = APIRouter(route_class=Page)


@router.get("/")
async def jobs(request: Request, visitor: AnyVisitor, session: SessionDep, parts: ServiceDep) -> Response:
    """Where everybody comes in: who may not read jobs goes on to the first page that they may."""
    if not visitor.may(Scope.JOBS_READ):
        return see(first_page(visitor.caller))
    given = {name: request.query_params.getlist(name) for name in request.query_params}
    query, wrong = _query({name: [value for value in values if value] for name, values in given.items()})
    now = await standing(session, tenant=visitor.caller.tenant, settings=parts.settings)
    page = await api.list_jobs(query, visitor.caller, parts)
    others = urlencode(query.model_dump(mode="json", exclude_unset=True, exclude={"cursor", "status"}), doseq=True)
    return render(
        request, "jobs.html", visitor, status=422 if wrong else 200, jobs=[] if wrong else page.data,
        next_cursor=page.next_cursor, query=query, filtered=bool(query.model_fields_set - {"cursor"}), wrong=wrong,
        values={name: given.get(name, [""])[-1] for name in FIELDS}, statuses=list(JobStatus), again=_again(query),
        live=any(job.status not in FINISHED for job in page.data), base=_base(request), others=others,
        tabs=_tabs(now.queued, now.running), known=query.status in [statuses for _, statuses, _ in _tabs(0, 0)],
    )  # fmt: skip


def _tabs(queued: int, running: int) -> list[tuple[str, list[JobStatus], int | None]]:
    """What is asked most often, in one click: (title, statuses, how many there are now)."""
    return [
        ("All", [], None),
        ("At work", [JobStatus.RUNNING, JobStatus.CANCELLING], running),
        ("Waiting", [JobStatus.QUEUED], queued),
        ("Failed", [JobStatus.FAILED], None),
        ("Succeeded", [JobStatus.SUCCEEDED], None),
        ("Cancelled", [JobStatus.CANCELLED], None),
    ]


@router.get("/jobs/{job_id}")
async def job(request: Request, job_id: str, visitor: JobsReader, session: SessionDep, parts: ServiceDep) -> Response:
    row = await queries.get_job(session, tenant=visitor.caller.tenant, job_id=job_id)
    view = JobView.of(row)
    step = math.ceil(row.blocks_done / queries.MOST_BLOCKS) or 1
    blocks = await queries.block_errors(session, job_id=job_id, step=step)
    held = [AttemptView.of(one) for one in await queries.attempts_of(session, job_id=job_id)]
    first = max(0, row.event_seq - LATEST_EVENTS)
    happened = await events_after(session, job_id=job_id, seq=first, limit=LATEST_EVENTS + 1)
    told = history.one_of_a_kind([EventView.of(one) for one in reversed(happened)])
    files = [ArtifactView.of(one) for one in await queries.artifacts_of(session, job_id=job_id)]
    waits = view.status == JobStatus.QUEUED and visitor.may(Scope.WORKERS_READ)
    workers = (await system.workers(visitor.caller, session, parts)).data if waits else []
    return render(
        request, "job.html", visitor, job=view, spec=row.spec, blocks=blocks, held=held, files=files,
        sentences=history.attempts(held), happened=told, earlier=first,
        chart=error_chart(blocks, view.progress.blocks_total), last_event=row.event_seq,
        live=view.status not in FINISHED, has_report=any(file.name == REPORT for file in files),
        base=_base(request), queue=history.queue(workers) if waits else None,
        step=step,
        advice=advice(view.error.code) if view.error else "",
        sentence=outcome.sentence(view), snippet=outcome.snippet(view, base=_base(request)),
    )  # fmt: skip


@router.post("/jobs/{job_id}/cancel")
async def cancel(request: Request, job_id: str, visitor: JobsWriter, session: SessionDep) -> Response:
    await form_of(request, visitor)
    await api.cancel(job_id, visitor.caller, session)
    return see(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/retry")
async def retry(
    request: Request, job_id: str, visitor: JobsWriter, session: SessionDep, parts: ServiceDep, doorbell: DoorbellDep
) -> Response:
    await form_of(request, visitor)
    await api.retry(job_id, visitor.caller, session, parts, doorbell)
    return see(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/delete")
async def delete(
    request: Request, job_id: str, visitor: JobsWriter, session: SessionDep, parts: ServiceDep
) -> Response:
    await form_of(request, visitor)
    await api.delete(job_id, visitor.caller, session, parts)
    return see("/")


@router.post("/jobs/delete")
async def delete_many(request: Request, visitor: JobsWriter, session: SessionDep, parts: ServiceDep) -> Response:
    """The finished jobs of the page's filter, a thousand at once."""
    form = await form_of(request, visitor)
    query, wrong = _query(parse_qs(str(form.get("filter", ""))))
    if wrong:
        raise Problem(problems.INVALID_REQUEST, "the filter of the page is not valid")
    given = query.model_dump(exclude_unset=True, include=set(JobFilter.model_fields))
    wanted = JobDeletion.model_validate(given or {"status": sorted(FINISHED)})
    await api.delete_many(wanted, visitor.caller, session, parts)
    return see("/" + (f"?{form['filter']}" if given else ""))


@router.get("/jobs/{job_id}/events")
async def events(
    request: Request,
    job_id: str,
    visitor: JobsReader,
    session: SessionDep,
    parts: ServiceDep,
    after: Annotated[int, Query(ge=0, le=api.MAX_SEQ)] = 0,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Any:
    """The stream of ``/v1/jobs/{id}/events`` for who has a session instead of a key."""
    return await api.events(
        job_id, request, visitor.caller, session, parts, after=after, limit=100, last_event_id=last_event_id
    )


@router.get("/jobs/{job_id}/report")
async def report(
    request: Request, job_id: str, visitor: JobsReader, session: SessionDep, parts: ServiceDep
) -> Response:
    """The quality report as a page. It may be shown inside of ours, and runs and loads nothing."""
    response = await artifacts.report(job_id, request, visitor.caller, session, parts, format="html")
    policy = response.headers["Content-Security-Policy"]
    response.headers["Content-Security-Policy"] = f"{policy}; frame-ancestors 'self'"
    return response


@router.get("/jobs/{job_id}/files/{name:path}")
async def download(
    request: Request, job_id: str, name: str, visitor: JobsReader, session: SessionDep, parts: ServiceDep
) -> Response:
    return await artifacts.download(job_id, name, request, visitor.caller, session, parts)


@router.get("/jobs/{job_id}/archive")
async def archive(
    request: Request, job_id: str, visitor: JobsReader, session: SessionDep, parts: ServiceDep
) -> Response:
    return await artifacts.archive(job_id, request, visitor.caller, session, parts)


def _query(given: Mapping[str, Sequence[str]]) -> tuple[JobQuery, dict[str, str]]:
    """The filters of the listing, and what is wrong with those that the form has; then it filters nothing. An empty
    field is no filter. Raises Problem 422 for what only an address that was typed can ask."""
    many = ("status", "label")
    fields: dict[str, Any] = {name: list(v) if name in many else v[-1] for name, v in given.items() if v}
    try:
        return JobQuery.model_validate(fields), {}
    except ValidationError as error:
        wrong = forms.invalid(error.errors(include_url=False))
    if set(wrong) <= set(FIELDS):
        return JobQuery(), wrong
    raise Problem(problems.INVALID_REQUEST, "; ".join(f"{name}: {sentence}" for name, sentence in wrong.items()))


def _base(request: Request) -> str:
    """Where the commands that a page shows find the service."""
    return str(request.base_url).rstrip("/")


def _again(query: JobQuery) -> str:
    """The filters as a query string, for the link to the next page."""
    return urlencode(query.model_dump(mode="json", exclude_unset=True, exclude={"cursor"}), doseq=True)
