"""The dashboard's page of a fork: the form of a job, filled in with another's, and what it would take over."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.deps import DoorbellDep, Service, ServiceDep, SessionDep
from app.jobs import queries
from app.jobs import router as api
from app.jobs.fork import ForkRequest, Takeover, asked_of, forked, takeover
from app.ui import job_form
from app.ui.datasets import usable_datasets
from app.ui.new_job import choices, made_id
from app.ui.pages import Page, render, see
from app.ui.visitor import JobsWriter, Visitor, form_of
from app.web.problems import Problem
from core.ledger.tables import Job

router = APIRouter(route_class=Page)


@router.get("/jobs/{job_id}/fork")
async def start(request: Request, job_id: str, visitor: JobsWriter, session: SessionDep, parts: ServiceDep) -> Response:
    parent = await queries.get_job(session, tenant=visitor.caller.tenant, job_id=job_id)
    values = job_form.values_of_spec(asked_of(parent))
    found = await _found(session, visitor, parent, values)
    return await _page(request, visitor, session, parts, parent=parent, values=values, found=found)


@router.post("/jobs/{job_id}/fork")
async def fork(
    request: Request, job_id: str, visitor: JobsWriter, session: SessionDep, parts: ServiceDep, doorbell: DoorbellDep
) -> Response:
    form = await form_of(request, visitor)
    parent = await queries.get_job(session, tenant=visitor.caller.tenant, job_id=job_id)
    values = job_form.values_of(form)
    try:
        wanted = _request(parent, values)
        found = await _found(session, visitor, parent, values)
        if form.get("do") == "look":
            return await _page(request, visitor, session, parts, parent=parent, values=values, found=found)
        once = str(form.get("once", ""))
        made = await api.fork(
            job_id, wanted, request, visitor.caller, session, parts, doorbell, Response(), idempotency_key=once
        )
    except (RequestValidationError, ValidationError) as error:
        wrong = job_form.invalid(error)
    except Problem as problem:
        wrong = job_form.refused(problem)
    else:
        return see(f"/jobs/{made_id(made)}")
    return await _page(request, visitor, session, parts, parent=parent, values=values, wrong=wrong)


def _request(parent: Job, values: Mapping[str, str]) -> ForkRequest:
    return ForkRequest.model_validate(job_form.changes_of(values, asked_of(parent)))


async def _found(session: AsyncSession, visitor: Visitor, parent: Job, values: Mapping[str, str]) -> Takeover:
    request = _request(parent, values)
    _, spec = await forked(session, tenant=visitor.caller.tenant, job_id=parent.id, request=request)
    return await takeover(session, parent=parent, spec=spec)


async def _page(
    request: Request,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    *,
    parent: Job,
    values: Mapping[str, str],
    found: Takeover | None = None,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    datasets = await usable_datasets(session, visitor, parts)
    return render(
        request, "fork.html", visitor, status=422 if wrong else 200, parent=parent, values=values, found=found,
        wrong=wrong or {}, once=secrets.token_urlsafe(16), changed=_names(found.changed if found else []),
        looked=request.method == "POST", **choices(parts, datasets),
    )  # fmt: skip


def _names(pointers: list[str]) -> list[str]:
    titles = {**job_form.TITLES, "calibration": "Calibration rows"}
    return [titles.get(name, name.rpartition(".")[2].replace("_", " ")).lower() for name in pointers]
