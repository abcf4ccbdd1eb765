"""The dashboard's pages of calibration rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Scope
from app.datasets import router as api
from app.datasets.schemas import DatasetChanges, DatasetQuery, DatasetView, FiguresView
from app.datasets.upload import EndFields
from app.deps import Service, ServiceDep, SessionDep
from app.ui import forms, keeping
from app.ui.pages import Page, local_path, render, see
from app.ui.visitor import DatasetsReader, DatasetsWriter, Visitor, check_csrf, check_origin, form_of
from app.web import problems
from app.web.problems import Problem
from core.contract.spec import ModelRef
from core.settings import Settings

MOST_OFFERED = 100
ROWS = 10
router = APIRouter(route_class=Page)


@router.get("/datasets")
async def datasets(
    request: Request,
    visitor: DatasetsReader,
    session: SessionDep,
    parts: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    return await _page(request, visitor, session, parts, DatasetQuery(cursor=cursor))


@router.post("/datasets")
async def upload(
    request: Request,
    visitor: DatasetsWriter,
    session: SessionDep,
    parts: ServiceDep,
    next: Annotated[str, Query(max_length=200)] = "/datasets",  # noqa: A002 -- the name of the query parameter
) -> Response:
    """The body is the file, straight to disk; the form's token comes with it, and without it nothing is kept."""
    check_origin(request)
    typed: dict[str, str] = {}
    try:
        made = await api.take(request, visitor.caller, session, parts, end=_of_this_session(visitor, typed))
        assert not isinstance(made, Response)  # only a key of idempotency recalls one
    except Problem as problem:
        if problem.kind is problems.FORGED_FORM:
            raise
        return await _page(request, visitor, session, parts, DatasetQuery(), refused=problem, typed=typed)
    return see(local_path(next), dataset=made.id)


def _of_this_session(visitor: Visitor, typed: dict[str, str]) -> EndFields:
    """Raises Problem 403 for a form that another page made."""
    keeps = keeping.of_an_upload(typed)

    def meant(fields: Mapping[str, str], settings: Settings) -> datetime | None:
        check_csrf(visitor, fields.get("csrf", ""))
        return keeps.meant(fields, settings)

    return EndFields((*keeps.names, "csrf"), meant)


@router.get("/datasets/{dataset_id}")
async def dataset(
    request: Request,
    dataset_id: str,
    visitor: DatasetsReader,
    session: SessionDep,
    parts: ServiceDep,
    after: Annotated[int, Query(ge=0, le=10**9)] = 0,
    model: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Its rows with their images, ten at a time, and figures over all of them. ``model``: whose tokens are counted."""
    return await _one(request, dataset_id, visitor, session, parts, after=after, model=model.strip())


@router.post("/datasets/{dataset_id}/keep")
async def keep(
    request: Request, dataset_id: str, visitor: DatasetsWriter, session: SessionDep, parts: ServiceDep
) -> Response:
    """Until when: for ever, for some days, to the end of a day."""
    values = keeping.values_of(await form_of(request, visitor))
    try:
        end = keeping.end_of(values)
        changes = DatasetChanges.model_validate({"expires_at": None if end is None else end.isoformat()})
        await api.change(dataset_id, changes, visitor.caller, session)
    except Problem as problem:
        if problem.kind is problems.NOT_FOUND:
            raise
        wrong = forms.refused(problem)
        return await _one(request, dataset_id, visitor, session, parts, values=values, wrong=wrong)
    return see(f"/datasets/{dataset_id}")


@router.get("/datasets/{dataset_id}/rows/{number}/images/{index}")
async def image(
    request: Request,
    dataset_id: str,
    number: api.RowNumber,
    index: api.MediaIndex,
    visitor: DatasetsReader,
    session: SessionDep,
    parts: ServiceDep,
) -> Response:
    return await api.image(request, dataset_id, number, index, visitor.caller, session, parts)


@router.get("/datasets/{dataset_id}/rows/{number}/audio/{index}")
async def audio(
    request: Request,
    dataset_id: str,
    number: api.RowNumber,
    index: api.MediaIndex,
    visitor: DatasetsReader,
    session: SessionDep,
    parts: ServiceDep,
) -> Response:
    return await api.audio(request, dataset_id, number, index, visitor.caller, session, parts)


@router.post("/datasets/{dataset_id}/delete")
async def remove(
    request: Request, dataset_id: str, visitor: DatasetsWriter, session: SessionDep, parts: ServiceDep
) -> Response:
    await form_of(request, visitor)
    await api.remove(dataset_id, visitor.caller, session, parts)
    return see("/datasets")


async def usable_datasets(session: AsyncSession, visitor: Visitor, parts: Service) -> list[DatasetView]:
    """The newest datasets, for a field to choose from; none for a key that may not read them."""
    if not visitor.may(Scope.DATASETS_READ):
        return []
    page = await api.list_datasets(DatasetQuery(limit=MOST_OFFERED), visitor.caller, session, parts)
    return [dataset for dataset in page.data if dataset.status == "ready"]


async def _one(
    request: Request,
    dataset_id: str,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    *,
    after: int = 0,
    model: str = "",
    values: Mapping[str, str] | None = None,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    view = await api.get(dataset_id, visitor.caller, session)
    shown: dict[str, Any] = {"rows": None, "figures": None, "after": after, "model": model, "unread": None}
    try:
        shown["rows"] = await api.rows(request, dataset_id, visitor.caller, session, parts, after=after, limit=ROWS)
        shown["figures"] = await _figures(request, dataset_id, visitor, session, parts, model, shown)
    except Problem as problem:
        shown["gone"] = problem.detail
    return render(
        request, "dataset.html", visitor, status=422 if wrong else 200, dataset=view, wrong=wrong or {},
        values=values or keeping.values_until(view.expires_at), **shown,
    )  # fmt: skip


async def _figures(
    request: Request,
    dataset_id: str,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    model: str,
    shown: dict[str, Any],
) -> FiguresView:
    """Those of any model where ``model`` cannot be read; ``shown`` is told why."""
    if model:
        try:
            named = ModelRef(id=model)
            return await api.statistics(request, dataset_id, visitor.caller, session, parts, model=named.id)
        except ValidationError:
            shown["unread"] = f"{model} is no model id: write owner/name, or local/name for a model of the service."
        except Problem as problem:
            if problem.kind not in (problems.INVALID_MODEL, problems.HUB_UNAVAILABLE):
                raise
            shown["unread"] = problem.detail
    return await api.statistics(request, dataset_id, visitor.caller, session, parts)


async def _page(
    request: Request,
    visitor: Visitor,
    session: AsyncSession,
    parts: Service,
    query: DatasetQuery,
    *,
    refused: Problem | None = None,
    typed: Mapping[str, str] | None = None,
) -> Response:
    usual = keeping.FOR_EVER if parts.settings.dataset_ttl is None else keeping.AS_USUAL
    page = await api.list_datasets(query, visitor.caller, session, parts)
    return render(
        request, "datasets.html", visitor, status=refused.kind.status if refused else 200, datasets=page.data,
        next_cursor=page.next_cursor, refused=refused, made=request.query_params.get("dataset"),
        most_bytes=parts.settings.max_dataset_bytes, usual=parts.settings.dataset_ttl,
        values={**usual, "name": "", **(typed or {})}, wrong=forms.refused(refused) if refused else {},
    )  # fmt: skip
