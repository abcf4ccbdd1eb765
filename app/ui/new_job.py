"""The dashboard's form of a new job, which plans before it submits, and what every form that makes jobs offers."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets.schemas import DatasetView
from app.db.engine import release
from app.deps import DoorbellDep, Service, ServiceDep, SessionDep
from app.jobs import queries
from app.jobs import router as api
from app.jobs.fork import asked_of
from app.models.service import local_models
from app.plans import router as plans
from app.plans.schemas import JobRequest, PlanView
from app.ui import job_form
from app.ui.datasets import usable_datasets
from app.ui.pages import Page, render, see
from app.ui.visitor import JobsWriter, Visitor, form_of
from app.web.problems import Problem
from core.contract import spec as contract
from quant_experts.spec.methods import PLACES

PRESETS = [
    ("Best quality", "W4A16, balanced", {"scheme": "W4A16", "method": "balanced"}),
    ("Balanced", "W4A8, balanced", {"scheme": "W4A8", "method": "balanced"}),
    ("Smallest", "W3A16, balanced", {"scheme": "W3A16", "method": "balanced"}),
]
"""Title, what it sets, and the fields: where somebody begins who does not know the options yet."""
LIVE = "live"
DIGEST = re.compile(r"[0-9a-f]{64}")
router = APIRouter(route_class=Page)


@router.get("/jobs/new")
async def blank(request: Request, visitor: JobsWriter, session: SessionDep, parts: ServiceDep) -> Response:
    """``?from=job_…`` starts from what that job asked for, ``?dataset=ds_…`` with those rows."""
    values = dict.fromkeys(job_form.FIELDS, "") | job_form.DEFAULTS
    source = request.query_params.get("from")
    if source is not None:
        job = await queries.get_job(session, tenant=visitor.caller.tenant, job_id=source)
        values = job_form.values_of_spec(asked_of(job))
    values[job_form.UPLOADED] = request.query_params.get("dataset", values[job_form.UPLOADED])
    return await _form(request, visitor, session, parts, values=values)


@router.post("/jobs/new")
async def create(
    request: Request, visitor: JobsWriter, session: SessionDep, parts: ServiceDep, doorbell: DoorbellDep
) -> Response:
    form = await form_of(request, visitor)
    values = job_form.values_of(form)
    spec, wrong = job_form.checked(values)
    live = form.get("do") == LIVE
    if spec is None:
        return await _form(request, visitor, session, parts, values=values, wrong=wrong, live=live)
    try:
        if form.get("do") in ("plan", LIVE):
            plan = await plans.plan(spec, request, visitor.caller, session, parts)
            return await _form(request, visitor, session, parts, values=values, plan=plan)
        # The token makes a second click, or a reload of the answer, the same job.
        digest, once = str(form.get("plan", "")), str(form.get("once", ""))
        wanted = JobRequest.model_validate({**spec.model_dump(), "plan": digest if DIGEST.fullmatch(digest) else None})
        made = await api.create(wanted, request, visitor.caller, parts, doorbell, Response(), idempotency_key=once)
    except Problem as problem:
        wrong = job_form.refused(problem)
        return await _form(request, visitor, session, parts, values=values, wrong=wrong, live=live)
    return see(f"/jobs/{made_id(made)}")


def made_id(made: Any) -> str:
    """Of what was made just now, or of the answer that an earlier request with the same token got."""
    return str(made.headers["Location"].rpartition("/")[2] if isinstance(made, Response) else made.id)


def _said(method: str, slots: Sequence[str]) -> str:
    """``qe: search + rtn + qe``, with a figure where one was measured; the name alone where it says the same."""
    steps = " + ".join(slot for slot in slots if slot != "none")
    place = next((f" ({place.said})" for place in PLACES.get(method, ())), "")
    return method if steps == method else f"{method}: {steps}{place}"


def choices(parts: Service, datasets: Sequence[DatasetView]) -> dict[str, Any]:
    """What the fields of a job's form offer."""
    return {
        "titles": job_form.TITLES,
        "schemes": [(name, name) for name in (*contract.NAMED_SCHEMES, contract.AUTO)],
        "methods": [(name, _said(name, slots)) for name, slots in contract.METHODS.items()],
        "datasets": [(one.id, f"{one.name or one.id} · {one.rows} rows, {one.images} images") for one in datasets],
        "model_root": parts.settings.model_root is not None,
    }


async def _suggested(request: Request, visitor: Visitor, parts: Service) -> list[str]:
    """Local models that a job can have; none where they cannot be listed."""
    try:
        async with parts.reading(request, visitor.caller):
            found = await local_models(parts.settings)
        return [model.id for model in found.data if model.problem is None]
    except OSError:
        return []


async def _form(
    request: Request,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    *,
    values: Mapping[str, str],
    wrong: Mapping[str, str] | None = None,
    plan: PlanView | None = None,
    live: bool = False,
) -> Response:
    """``live``: asked for by the page itself, to which a refusal is nothing unusual."""
    datasets = await usable_datasets(session, visitor, parts)
    await release(session)
    models = await _suggested(request, visitor, parts)
    return render(
        request, "job_new.html", visitor, status=422 if wrong and not live else 200, values=values, wrong=wrong or {},
        plan=plan, once=secrets.token_urlsafe(16), models=models, presets=PRESETS, **choices(parts, datasets),
    )  # fmt: skip
