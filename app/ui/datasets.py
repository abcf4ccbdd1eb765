"""The dashboard's pages of calibration rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Scope
from app.datasets import contents, queries, service
from app.datasets.schemas import DatasetChanges, DatasetQuery, DatasetView, FiguresView, MediaIndex, RowNumber
from app.datasets.upload import ExpiryFields
from app.deps import Service, ServiceDep, SessionDep
from app.ui import dataset_lifetime as keeping
from app.ui import forms
from app.ui.pages import Page, local_path, redirect_to, render
from app.ui.sign_in import DatasetsReader, DatasetsWriter, User, check_csrf, check_origin, checked_form
from app.web import problems
from app.web.idempotency import new_id_of
from app.web.problems import Problem
from core.contract.spec import ModelRef
from core.settings import Settings

MOST_OFFERED = 100
ROWS = 10
router = APIRouter(route_class=Page)


@router.get("/datasets")
async def datasets(
    request: Request,
    user: DatasetsReader,
    session: SessionDep,
    deps: ServiceDep,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Response:
    return await _page(request, user, session, deps, DatasetQuery(cursor=cursor))


@router.post("/datasets")
async def upload(
    request: Request,
    user: DatasetsWriter,
    session: SessionDep,
    deps: ServiceDep,
    next: Annotated[str, Query(max_length=200)] = "/datasets",  # noqa: A002 -- the name of the query parameter
) -> Response:
    """Stream the file to disk. It is stored only with a valid CSRF token in the form."""
    check_origin(request)
    values: dict[str, str] = {}
    try:
        created = await service.receive(request, user.caller, session, deps, end=_of_this_session(user, values))
    except Problem as problem:
        if problem.kind is problems.FORGED_FORM:
            raise
        return await _page(request, user, session, deps, DatasetQuery(), problem=problem, values=values)
    return redirect_to(local_path(next), dataset=new_id_of(created))


def _of_this_session(user: User, values: dict[str, str]) -> ExpiryFields:
    """The expiry fields of the form, and its CSRF token. Raises Problem 403 for a wrong token."""
    keeps = keeping.of_an_upload(values)

    def parse(fields: Mapping[str, str], settings: Settings) -> datetime | None:
        check_csrf(user, fields.get("csrf", ""))
        return keeps.parse(fields, settings)

    return ExpiryFields((*keeps.names, "csrf"), parse)


@router.get("/datasets/{dataset_id}")
async def dataset(
    request: Request,
    dataset_id: str,
    user: DatasetsReader,
    session: SessionDep,
    deps: ServiceDep,
    after: Annotated[int, Query(ge=0, le=10**9)] = 0,
    model: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Its rows with their images, ten at a time, and figures over all of them. ``model``: whose tokens are counted."""
    return await _one(request, dataset_id, user, session, deps, after=after, model=model.strip())


@router.post("/datasets/{dataset_id}/keep")
async def keep(
    request: Request, dataset_id: str, user: DatasetsWriter, session: SessionDep, deps: ServiceDep
) -> Response:
    """Change the expiry."""
    values = forms.values_of(await checked_form(request, user), keeping.NAMES)
    try:
        end = keeping.end_of(values)
        changes = DatasetChanges.model_validate({"expires_at": None if end is None else end.isoformat()})
        await service.change_dataset(
            session, tenant=user.caller.tenant, dataset_id=dataset_id, expires_at=changes.expires_at
        )
    except Problem as problem:
        if problem.kind is problems.NOT_FOUND:
            raise
        wrong = forms.refused(problem)
        return await _one(request, dataset_id, user, session, deps, values=values, wrong=wrong)
    return redirect_to(f"/datasets/{dataset_id}")


@router.get("/datasets/{dataset_id}/rows/{number}/images/{index}")
async def image(
    request: Request,
    dataset_id: str,
    number: RowNumber,
    index: MediaIndex,
    user: DatasetsReader,
    session: SessionDep,
    deps: ServiceDep,
) -> Response:
    return await contents.send_image(
        request, user.caller, session, deps, dataset_id=dataset_id, number=number, index=index
    )


@router.get("/datasets/{dataset_id}/rows/{number}/audio/{index}")
async def audio(
    request: Request,
    dataset_id: str,
    number: RowNumber,
    index: MediaIndex,
    user: DatasetsReader,
    session: SessionDep,
    deps: ServiceDep,
) -> Response:
    return await contents.send_audio(
        request, user.caller, session, deps, dataset_id=dataset_id, number=number, index=index
    )


@router.post("/datasets/{dataset_id}/delete")
async def remove(
    request: Request, dataset_id: str, user: DatasetsWriter, session: SessionDep, deps: ServiceDep
) -> Response:
    await checked_form(request, user)
    await service.remove_dataset(session, tenant=user.caller.tenant, dataset_id=dataset_id, storage=deps.storage)
    return redirect_to("/datasets")


async def usable_datasets(session: AsyncSession, user: User, deps: Service) -> list[DatasetView]:
    """The newest usable datasets, for a field of a form; none for a key without the scope."""
    if not user.may(Scope.DATASETS_READ):
        return []
    page = await service.list_datasets(
        session, tenant=user.caller.tenant, query=DatasetQuery(limit=MOST_OFFERED), signer=deps.keyring
    )
    return [dataset for dataset in page.data if dataset.status == "ready"]


async def _one(
    request: Request,
    dataset_id: str,
    user: User,
    session: AsyncSession,
    deps: Service,
    *,
    after: int = 0,
    model: str = "",
    values: Mapping[str, str] | None = None,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    row = await queries.get_dataset(session, tenant=user.caller.tenant, dataset_id=dataset_id)
    view = DatasetView.of(row)
    variables: dict[str, Any] = {"rows": None, "figures": None, "after": after, "model": model, "unread": None}
    try:
        variables["rows"] = await contents.page_of_rows(
            request, user.caller, session, deps, dataset_id=dataset_id, after=after, limit=ROWS
        )
        variables["figures"] = await _statistics(request, dataset_id, user, session, deps, model, variables)
    except Problem as problem:
        variables["gone"] = problem.detail
    return render(
        request, "dataset.html", user, status=422 if wrong else 200, dataset=view, wrong=wrong or {},
        values=values or keeping.values_until(view.expires_at), **variables,
    )  # fmt: skip


async def _statistics(
    request: Request,
    dataset_id: str,
    user: User,
    session: AsyncSession,
    deps: Service,
    model: str,
    variables: dict[str, Any],
) -> FiguresView:
    """Statistics with the tokens of ``model``; estimated where it cannot be read. ``variables`` gets the reason."""
    if model:
        try:
            return await contents.view_statistics(
                request, user.caller, session, deps, dataset_id=dataset_id, model=ModelRef(id=model)
            )
        except ValidationError:
            variables["unread"] = f"{model} is no model id: write owner/name, or local/name for a model of the service."
        except Problem as problem:
            if problem.kind not in (problems.INVALID_MODEL, problems.HUB_UNAVAILABLE):
                raise
            variables["unread"] = problem.detail
    return await contents.view_statistics(request, user.caller, session, deps, dataset_id=dataset_id)


async def _page(
    request: Request,
    user: User,
    session: AsyncSession,
    deps: Service,
    query: DatasetQuery,
    *,
    problem: Problem | None = None,
    values: Mapping[str, str] | None = None,
) -> Response:
    usual = keeping.FOR_EVER if deps.settings.dataset_ttl is None else keeping.AS_USUAL
    page = await service.list_datasets(session, tenant=user.caller.tenant, query=query, signer=deps.keyring)
    return render(
        request, "datasets.html", user, status=problem.kind.status if problem else 200, datasets=page.data,
        next_cursor=page.next_cursor, refused=problem, made=request.query_params.get("dataset"),
        most_bytes=deps.settings.max_dataset_bytes, usual=deps.settings.dataset_ttl,
        values={**usual, "name": "", **(values or {})}, wrong=forms.refused(problem) if problem else {},
    )  # fmt: skip
