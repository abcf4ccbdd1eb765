"""The dashboard's page of a fork: the form of a job with the values of another, and what the fork would reuse."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.deps import NotifierDep, Service, ServiceDep, SessionDep
from app.jobs import queries, service
from app.jobs.fork import ForkRequest, Reuse, fork_spec, requested_spec, reuse_of
from app.ui import job_form
from app.ui.datasets import usable_datasets
from app.ui.forms import values_of
from app.ui.new_job import choices
from app.ui.pages import Page, redirect_to, render
from app.ui.sign_in import JobsWriter, User, checked_form
from app.web.idempotency import new_id_of
from app.web.problems import Problem
from core.ledger.tables import Job

router = APIRouter(route_class=Page)


@router.get("/jobs/{job_id}/fork")
async def start(request: Request, job_id: str, user: JobsWriter, session: SessionDep, deps: ServiceDep) -> Response:
    parent = await queries.get_job(session, tenant=user.caller.tenant, job_id=job_id)
    values = job_form.values_of_spec(requested_spec(parent))
    reuse = await _reuse_of(session, user, parent, values)
    return await _page(request, user, session, deps, parent=parent, values=values, reuse=reuse)


@router.post("/jobs/{job_id}/fork")
async def fork(
    request: Request, job_id: str, user: JobsWriter, session: SessionDep, deps: ServiceDep, notifier: NotifierDep
) -> Response:
    form = await checked_form(request, user)
    parent = await queries.get_job(session, tenant=user.caller.tenant, job_id=job_id)
    values = values_of(form, job_form.FIELDS)
    try:
        changes = _request(parent, values)
        reuse = await _reuse_of(session, user, parent, values)
        if form.get("do") == "look":
            return await _page(request, user, session, deps, parent=parent, values=values, reuse=reuse)
        once = str(form.get("once", ""))
        created = await service.fork_job(
            request, user.caller, session, deps, notifier, job_id=job_id, changes=changes, idempotency_key=once
        )
    except (RequestValidationError, ValidationError) as error:
        wrong = job_form.invalid(error)
    except Problem as problem:
        wrong = job_form.refused(problem)
    else:
        return redirect_to(f"/jobs/{new_id_of(created)}")
    return await _page(request, user, session, deps, parent=parent, values=values, wrong=wrong)


def _request(parent: Job, values: Mapping[str, str]) -> ForkRequest:
    return ForkRequest.model_validate(job_form.changes_of(values, requested_spec(parent)))


async def _reuse_of(session: AsyncSession, user: User, parent: Job, values: Mapping[str, str]) -> Reuse:
    request = _request(parent, values)
    _, spec = await fork_spec(session, tenant=user.caller.tenant, job_id=parent.id, request=request)
    return await reuse_of(session, parent=parent, spec=spec)


async def _page(
    request: Request,
    user: User,
    session: AsyncSession,
    deps: Service,
    *,
    parent: Job,
    values: Mapping[str, str],
    reuse: Reuse | None = None,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    datasets = await usable_datasets(session, user, deps)
    return render(
        request, "fork.html", user, status=422 if wrong else 200, parent=parent, values=values, reuse=reuse,
        wrong=wrong or {}, once=secrets.token_urlsafe(16), changed=_names(reuse.changed if reuse else []),
        looked=request.method == "POST", **choices(deps, datasets),
    )  # fmt: skip


def _names(pointers: list[str]) -> list[str]:
    titles = {**job_form.TITLES, "calibration": "Calibration rows"}
    return [titles.get(name, name.rpartition(".")[2].replace("_", " ")).lower() for name in pointers]
