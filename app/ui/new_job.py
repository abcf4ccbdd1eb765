"""The dashboard's form of a new job, with a plan before submission, and the choices of every form of jobs."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets.schemas import DatasetView
from app.db.engine import release
from app.deps import NotifierDep, Service, ServiceDep, SessionDep
from app.jobs import queries, service
from app.jobs.fork import requested_spec
from app.models.service import local_models
from app.plans.schemas import JobRequest, PlanView
from app.plans.service import plan
from app.ui import job_form
from app.ui.datasets import usable_datasets
from app.ui.forms import values_of
from app.ui.pages import Page, redirect_to, render
from app.ui.sign_in import JobsWriter, User, checked_form
from app.web.idempotency import new_id_of
from app.web.problems import Problem
from core.contract import spec as contract
from quant_experts.spec.methods import MEASUREMENTS

PRESETS = [
    ("Best quality", "W4A16, best", {"scheme": "W4A16", "method": "best"}),
    ("Balanced", "W4A8, balanced", {"scheme": "W4A8", "method": "balanced"}),
    ("Smallest", "W3A16, balanced", {"scheme": "W3A16", "method": "balanced"}),
]
"""Starting points for new users: title, description, and the fields that they set."""
LIVE = "live"
DIGEST = re.compile(r"[0-9a-f]{64}")
router = APIRouter(route_class=Page)


@router.get("/jobs/new")
async def blank(request: Request, user: JobsWriter, session: SessionDep, deps: ServiceDep) -> Response:
    """``?from=job_…`` starts from what that job asked for, ``?dataset=ds_…`` with those rows."""
    values = dict.fromkeys(job_form.FIELDS, "") | job_form.DEFAULTS
    source = request.query_params.get("from")
    if source is not None:
        job = await queries.get_job(session, tenant=user.caller.tenant, job_id=source)
        values = job_form.values_of_spec(requested_spec(job))
    values[job_form.UPLOADED] = request.query_params.get("dataset", values[job_form.UPLOADED])
    return await _form(request, user, session, deps, values=values)


@router.post("/jobs/new")
async def create(
    request: Request, user: JobsWriter, session: SessionDep, deps: ServiceDep, notifier: NotifierDep
) -> Response:
    form = await checked_form(request, user)
    values = values_of(form, job_form.FIELDS)
    spec, wrong = job_form.checked(values)
    live = form.get("do") == LIVE
    if spec is None:
        return await _form(request, user, session, deps, values=values, wrong=wrong, live=live)
    try:
        if form.get("do") in ("plan", LIVE):
            planned = await plan(request, user.caller, session, deps, spec=spec)
            return await _form(request, user, session, deps, values=values, planned=planned)
        # The idempotency key makes a second click, or a reload of the response, the same job.
        digest, once = str(form.get("plan", "")), str(form.get("once", ""))
        job = JobRequest.model_validate({**spec.model_dump(), "plan": digest if DIGEST.fullmatch(digest) else None})
        created = await service.submit_job(request, user.caller, deps, notifier, spec=job, idempotency_key=once)
    except Problem as problem:
        wrong = job_form.refused(problem)
        return await _form(request, user, session, deps, values=values, wrong=wrong, live=live)
    return redirect_to(f"/jobs/{new_id_of(created)}")


def _said(method: str, slots: Sequence[str]) -> str:
    """``qe: search + rtn + qe``, with a measured figure where there is one; the name alone where the slots say the
    same."""
    steps = " + ".join(slot for slot in slots if slot != "none")
    place = next((f" ({measurement.text})" for measurement in MEASUREMENTS.get(method, ())), "")
    return method if steps == method else f"{method}: {steps}{place}"


def choices(deps: Service, datasets: Sequence[DatasetView]) -> dict[str, Any]:
    """The choices of the fields of a job's form."""
    return {
        "titles": job_form.TITLES,
        "schemes": [(name, name) for name in (*contract.NAMED_SCHEMES, contract.AUTO)],
        "methods": [(name, _said(name, slots)) for name, slots in contract.METHODS.items()],
        "datasets": [(one.id, f"{one.name or one.id} · {one.rows} rows, {one.images} images") for one in datasets],
        "model_root": deps.settings.model_root is not None,
    }


async def _suggested(request: Request, user: User, deps: Service) -> list[str]:
    """Local models that a job can use; none where they cannot be listed."""
    try:
        async with deps.reading(request, user.caller):
            models = await local_models(deps.settings)
        return [model.id for model in models.data if model.problem is None]
    except OSError:
        return []


async def _form(
    request: Request,
    user: User,
    session: AsyncSession,
    deps: Service,
    *,
    values: Mapping[str, str],
    wrong: Mapping[str, str] | None = None,
    planned: PlanView | None = None,
    live: bool = False,
) -> Response:
    """``live``: requested by the page's script, which expects errors with status 200."""
    datasets = await usable_datasets(session, user, deps)
    await release(session)
    models = await _suggested(request, user, deps)
    return render(
        request, "job_new.html", user, status=422 if wrong and not live else 200, values=values, wrong=wrong or {},
        plan=planned, once=secrets.token_urlsafe(16), models=models, presets=PRESETS, **choices(deps, datasets),
    )  # fmt: skip
