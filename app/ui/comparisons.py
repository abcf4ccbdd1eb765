"""The dashboard's pages of comparisons: several schemes and methods on one model and dataset."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncSession

from app.comparisons import router as api
from app.comparisons.plot import draw
from app.deps import DoorbellDep, Service, ServiceDep, SessionDep
from app.jobs import queries
from app.ui import comparison_form, job_form
from app.ui.datasets import usable_datasets
from app.ui.new_job import choices, made_id
from app.ui.pages import Page, render, see
from app.ui.visitor import JobsReader, JobsWriter, Visitor, form_of
from app.web.paging import PageQuery
from app.web.problems import Problem
from core.contract import spec as contract

router = APIRouter(prefix="/comparisons", route_class=Page)


@router.get("")
async def comparisons(
    request: Request,
    visitor: JobsReader,
    session: SessionDep,
    parts: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    page = await api.list_comparisons(PageQuery(cursor=cursor), visitor.caller, session, parts)
    return render(
        request, "comparisons.html", visitor, comparisons=page.data, next_cursor=page.next_cursor, cursor=cursor,
        live=not all(one.finished for one in page.data),
    )  # fmt: skip


@router.get("/new")
async def blank(request: Request, visitor: JobsWriter, session: SessionDep, parts: ServiceDep) -> Response:
    """``?from=job_…`` starts from what that job asked for, ``?dataset=ds_…`` with those rows."""
    values = dict.fromkeys(comparison_form.FIELDS, "") | {"calibration.split": "train"}
    schemes, methods = list(comparison_form.SCHEMES), list(comparison_form.METHODS)
    source = request.query_params.get("from")
    if source is not None:
        spec = (await queries.get_job(session, tenant=visitor.caller.tenant, job_id=source)).spec
        values = job_form.values_of_spec(spec) | {"name": ""}
        schemes, methods = [spec["scheme"]], [spec["method"]]
    values[job_form.UPLOADED] = request.query_params.get("dataset", values[job_form.UPLOADED])
    values[comparison_form.OTHER] = _others(schemes)
    return await _form(request, visitor, session, parts, values=values, schemes=schemes, methods=methods)


@router.post("/new")
async def create(
    request: Request, visitor: JobsWriter, session: SessionDep, parts: ServiceDep, doorbell: DoorbellDep
) -> Response:
    form = await form_of(request, visitor)
    values = job_form.values_of(form) | {comparison_form.OTHER: str(form.get(comparison_form.OTHER, ""))}
    schemes = [str(name) for name in form.getlist("schemes")]
    schemes += [name.strip() for name in values[comparison_form.OTHER].split(",") if name.strip()]
    methods = [str(name) for name in form.getlist("methods")]
    wanted, wrong = comparison_form.checked(values, schemes=schemes, methods=methods)
    if wanted is not None:
        try:
            once = str(form.get("once", ""))
            made = await api.create(
                wanted, request, visitor.caller, session, parts, doorbell, Response(), idempotency_key=once
            )
            return see(f"/comparisons/{made_id(made)}")
        except Problem as problem:
            wrong = job_form.refused(problem)
    return await _form(request, visitor, session, parts, values=values, schemes=schemes, methods=methods, wrong=wrong)


@router.get("/{comparison_id}")
async def comparison(request: Request, comparison_id: str, visitor: JobsReader, session: SessionDep) -> Response:
    view = await api.get(comparison_id, visitor.caller, session)
    drawing = Markup(draw(view, dressed=False))  # noqa: S704 -- escapes every text itself: test_comparisons.py
    by_size = sorted(view.jobs, key=lambda job: (job.bytes_after is None, job.bytes_after or 0))
    return render(request, "comparison.html", visitor, comparison=view, by_size=by_size, drawing=drawing)


@router.post("/{comparison_id}/cancel")
async def cancel(request: Request, comparison_id: str, visitor: JobsWriter, session: SessionDep) -> Response:
    await form_of(request, visitor)
    await api.cancel(comparison_id, visitor.caller, session)
    return see(f"/comparisons/{comparison_id}")


@router.post("/{comparison_id}/delete")
async def remove(request: Request, comparison_id: str, visitor: JobsWriter, session: SessionDep) -> Response:
    await form_of(request, visitor)
    await api.delete(comparison_id, visitor.caller, session)
    return see("/comparisons")


def _others(schemes: Sequence[str]) -> str:
    return ", ".join(name for name in schemes if name not in (*contract.NAMED_SCHEMES, contract.AUTO))


async def _form(
    request: Request,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    *,
    values: Mapping[str, str],
    schemes: Sequence[str],
    methods: Sequence[str],
    wrong: Mapping[str, str] | None = None,
) -> Response:
    offered = choices(parts, await usable_datasets(session, visitor, parts))
    named = [(name, name) for name in contract.NAMED_SCHEMES]
    return render(
        request, "comparison_new.html", visitor, status=422 if wrong else 200, values=values, wrong=wrong or {},
        once=secrets.token_urlsafe(16), ticked=(*schemes, *methods), **{**offered, "schemes": named},
    )  # fmt: skip
