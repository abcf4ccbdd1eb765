"""The dashboard's pages of comparisons: several schemes and methods on one model and dataset."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncSession

from app.comparisons import service
from app.comparisons.plot import draw
from app.deps import NotifierDep, Service, ServiceDep, SessionDep
from app.jobs import queries
from app.ui import comparison_form, job_form
from app.ui.datasets import usable_datasets
from app.ui.forms import values_of
from app.ui.new_job import choices
from app.ui.pages import Page, redirect_to, render
from app.ui.sign_in import JobsReader, JobsWriter, User, checked_form
from app.web.idempotency import new_id_of
from app.web.paging import PageQuery
from app.web.problems import Problem
from core.contract import spec as contract
from quant_experts.spec.choices import SCORES

router = APIRouter(prefix="/comparisons", route_class=Page)


@router.get("")
async def comparisons(
    request: Request,
    user: JobsReader,
    session: SessionDep,
    deps: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    page = await service.list_comparisons(
        session, tenant=user.caller.tenant, query=PageQuery(cursor=cursor), signer=deps.keyring
    )
    return render(
        request, "comparisons.html", user, comparisons=page.data, next_cursor=page.next_cursor, cursor=cursor,
        live=not all(one.finished for one in page.data),
    )  # fmt: skip


@router.get("/new")
async def blank(request: Request, user: JobsWriter, session: SessionDep, deps: ServiceDep) -> Response:
    """``?from=job_…`` starts from what that job asked for, ``?dataset=ds_…`` with those rows."""
    values = dict.fromkeys(comparison_form.FIELDS, "") | {"calibration.split": "train"}
    schemes, methods = list(comparison_form.SCHEMES), list(comparison_form.METHODS)
    source = request.query_params.get("from")
    if source is not None:
        spec = (await queries.get_job(session, tenant=user.caller.tenant, job_id=source)).spec
        values = job_form.values_of_spec(spec) | {"name": ""}
        schemes, methods = [spec["scheme"]], [spec["method"]]
    values[job_form.UPLOADED] = request.query_params.get("dataset", values[job_form.UPLOADED])
    values[comparison_form.OTHER] = _others(schemes)
    return await _form(request, user, session, deps, values=values, schemes=schemes, methods=methods)


@router.post("/new")
async def create(
    request: Request, user: JobsWriter, session: SessionDep, deps: ServiceDep, notifier: NotifierDep
) -> Response:
    form = await checked_form(request, user)
    values = values_of(form, job_form.FIELDS) | {comparison_form.OTHER: str(form.get(comparison_form.OTHER, ""))}
    schemes = [str(name) for name in form.getlist("schemes")]
    schemes += [name.strip() for name in values[comparison_form.OTHER].split(",") if name.strip()]
    methods = [str(name) for name in form.getlist("methods")]
    new, wrong = comparison_form.checked(values, schemes=schemes, methods=methods)
    if new is not None:
        try:
            once = str(form.get("once", ""))
            created = await service.submit_comparison(
                request, user.caller, session, deps, notifier, new=new, idempotency_key=once
            )
            return redirect_to(f"/comparisons/{new_id_of(created)}")
        except Problem as problem:
            wrong = job_form.refused(problem)
    return await _form(request, user, session, deps, values=values, schemes=schemes, methods=methods, wrong=wrong)


@router.get("/{comparison_id}")
async def comparison(request: Request, comparison_id: str, user: JobsReader, session: SessionDep) -> Response:
    view = await service.view_comparison(session, tenant=user.caller.tenant, comparison_id=comparison_id)
    plot = Markup(draw(view, dressed=False))  # noqa: S704 -- escapes every text itself: test_comparisons.py
    by_size = sorted(view.jobs, key=lambda job: (job.bytes_after is None, job.bytes_after or 0))
    measured = {name for job in view.jobs for name in job.scores or {}}
    task = next((name for name in reversed(SCORES) if name in measured and name != "edit_similarity"), None)
    return render(request, "comparison.html", user, comparison=view, by_size=by_size, drawing=plot, task=task)


@router.post("/{comparison_id}/cancel")
async def cancel(request: Request, comparison_id: str, user: JobsWriter, session: SessionDep) -> Response:
    await checked_form(request, user)
    await service.cancel_comparison(session, tenant=user.caller.tenant, comparison_id=comparison_id)
    return redirect_to(f"/comparisons/{comparison_id}")


@router.post("/{comparison_id}/delete")
async def remove(request: Request, comparison_id: str, user: JobsWriter, session: SessionDep) -> Response:
    await checked_form(request, user)
    await service.delete_comparison(session, tenant=user.caller.tenant, comparison_id=comparison_id)
    return redirect_to("/comparisons")


def _others(schemes: Sequence[str]) -> str:
    return ", ".join(name for name in schemes if name not in (*contract.NAMED_SCHEMES, contract.AUTO))


async def _form(
    request: Request,
    user: User,
    session: AsyncSession,
    deps: Service,
    *,
    values: Mapping[str, str],
    schemes: Sequence[str],
    methods: Sequence[str],
    wrong: Mapping[str, str] | None = None,
) -> Response:
    options = choices(deps, await usable_datasets(session, user, deps))
    scheme_names = [(name, name) for name in contract.NAMED_SCHEMES]
    return render(
        request, "comparison_new.html", user, status=422 if wrong else 200, values=values, wrong=wrong or {},
        once=secrets.token_urlsafe(16), ticked=(*schemes, *methods), **{**options, "schemes": scheme_names},
    )  # fmt: skip
