"""The dashboard's pages of jobs. What they show and do is what the routes of ``/v1/jobs`` give and do."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app import problems
from app.artifacts import router as artifacts
from app.artifacts.schemas import ArtifactView
from app.auth import Scope
from app.contract import spec as contract
from app.contract.states import FINISHED, JobStatus
from app.datasets.schemas import DatasetView
from app.deps import DoorbellDep, Service, ServiceDep, SessionDep
from app.jobs import queries
from app.jobs import router as api
from app.jobs.events import events_after
from app.jobs.schemas import AttemptView, EventView, JobQuery, JobView
from app.plans import router as plans
from app.plans.schemas import JobRequest, PlanView
from app.problems import Problem
from app.ui import job_form, words
from app.ui.datasets import usable_datasets
from app.ui.error_chart import error_chart
from app.ui.navigation import first_page
from app.ui.pages import Page, render, see
from app.ui.visitor import AnyVisitor, JobsReader, JobsWriter, Visitor, form_of

LATEST_EVENTS = 200
REPORT = "quality_report.html"
DIGEST = re.compile(r"[0-9a-f]{64}")
router = APIRouter(route_class=Page)


@router.get("/")
async def jobs(request: Request, visitor: AnyVisitor, session: SessionDep, parts: ServiceDep) -> Response:
    """Where everybody comes in: who may not read jobs goes on to the first page that they may."""
    if not visitor.may(Scope.JOBS_READ):
        return see(first_page(visitor.caller))
    given = {name: request.query_params.getlist(name) for name in request.query_params}
    query = _query({name: [value for value in values if value] for name, values in given.items()})
    page = await api.list_jobs(query, visitor.caller, session, parts)
    filtered = bool(query.model_fields_set - {"cursor"})
    return render(
        request, "jobs.html", visitor, jobs=page.data, next_cursor=page.next_cursor, query=query, filtered=filtered,
        statuses=list(JobStatus), live=any(job.status not in FINISHED for job in page.data), again=_again(query),
        base=_base(request),
    )  # fmt: skip


@router.get("/jobs/new")
async def blank(request: Request, visitor: JobsWriter, session: SessionDep, parts: ServiceDep) -> Response:
    """``?from=job_…`` starts from what that job asked for, ``?dataset=ds_…`` with those rows."""
    values = dict.fromkeys(job_form.FIELDS, "") | job_form.DEFAULTS
    source = request.query_params.get("from")
    if source is not None:
        values = job_form.values_of_spec(
            (await queries.get_job(session, tenant=visitor.caller.tenant, job_id=source)).spec
        )
    values[job_form.UPLOADED] = request.query_params.get("dataset", values[job_form.UPLOADED])
    return await _form(request, visitor, session, parts, values=values)


@router.post("/jobs/new")
async def create(
    request: Request, visitor: JobsWriter, session: SessionDep, parts: ServiceDep, doorbell: DoorbellDep
) -> Response:
    form = await form_of(request, visitor)
    values = job_form.values_of(form)
    spec, wrong = job_form.checked(values)
    if spec is None:
        return await _form(request, visitor, session, parts, values=values, wrong=wrong)
    try:
        if form.get("do") == "plan":
            plan = await plans.plan(spec, visitor.caller, session, parts)
            return await _form(request, visitor, session, parts, values=values, plan=plan)
        # The token makes a second click, or a reload of the answer, the same job.
        digest, once = str(form.get("plan", "")), str(form.get("once", ""))
        wanted = JobRequest.model_validate({**spec.model_dump(), "plan": digest if DIGEST.fullmatch(digest) else None})
        made = await api.create(wanted, visitor.caller, session, parts, doorbell, Response(), idempotency_key=once)
    except Problem as problem:
        return await _form(request, visitor, session, parts, values=values, wrong=job_form.refused(problem))
    return see(f"/jobs/{made_id(made)}")


@router.get("/jobs/{job_id}")
async def job(request: Request, job_id: str, visitor: JobsReader, session: SessionDep) -> Response:
    row = await queries.get_job(session, tenant=visitor.caller.tenant, job_id=job_id)
    view = JobView.of(row)
    blocks = await queries.block_errors(session, job_id=job_id)
    held = [AttemptView.of(one) for one in await queries.attempts_of(session, job_id=job_id)]
    first = max(0, row.event_seq - LATEST_EVENTS)
    happened = await events_after(session, job_id=job_id, seq=first, limit=LATEST_EVENTS + 1)
    files = [ArtifactView.of(one) for one in await queries.artifacts_of(session, job_id=job_id)]
    return render(
        request, "job.html", visitor, job=view, spec=row.spec, blocks=blocks, held=held, files=files,
        sentences=words.attempts(held), happened=[EventView.of(one) for one in reversed(happened)], earlier=first,
        chart=error_chart(blocks, view.progress.blocks_total), last_event=row.event_seq,
        live=view.status not in FINISHED, has_report=any(file.name == REPORT for file in files),
        base=_base(request),
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


def made_id(made: Any) -> str:
    """Of what was made just now, or of the answer that an earlier request with the same token got."""
    return str(made.headers["Location"].rpartition("/")[2] if isinstance(made, Response) else made.id)


def choices(parts: Service, datasets: Sequence[DatasetView]) -> dict[str, Any]:
    """What the fields of a job's form offer."""
    return {
        "titles": job_form.TITLES,
        "schemes": [(name, name) for name in (*contract.NAMED_SCHEMES, contract.AUTO)],
        "methods": [(name, f"{name}: {', '.join(slots)}") for name, slots in contract.METHODS.items()],
        "datasets": [(one.id, f"{one.name or one.id} · {one.rows} rows, {one.images} images") for one in datasets],
        "model_root": parts.settings.model_root is not None,
    }


def _query(given: Mapping[str, Sequence[str]]) -> JobQuery:
    """The filters of the listing. An empty field of the filter form is no filter. Raises Problem 422."""
    many = ("status", "label")
    fields: dict[str, Any] = {name: list(v) if name in many else v[-1] for name, v in given.items() if v}
    try:
        return JobQuery.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Problem(problems.INVALID_REQUEST, f"{'/'.join(map(str, first['loc']))}: {first['msg']}") from None


def _base(request: Request) -> str:
    """Where the commands that a page shows find the service."""
    return str(request.base_url).rstrip("/")


def _again(query: JobQuery) -> str:
    """The filters as a query string, for the link to the next page."""
    return urlencode(query.model_dump(mode="json", exclude_unset=True, exclude={"cursor"}), doseq=True)


async def _form(
    request: Request,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    *,
    values: Mapping[str, str],
    wrong: Mapping[str, str] | None = None,
    plan: PlanView | None = None,
) -> Response:
    datasets = await usable_datasets(session, visitor, parts)
    return render(
        request, "job_new.html", visitor, status=422 if wrong else 200, values=values, wrong=wrong or {}, plan=plan,
        once=secrets.token_urlsafe(16), **choices(parts, datasets),
    )  # fmt: skip
