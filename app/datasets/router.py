"""``/v1/datasets``: calibration rows, uploaded once, checked, immutable."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.datasets import contents, queries, service
from app.datasets.schemas import DatasetChanges, DatasetQuery, DatasetView, FiguresView, MediaIndex, RowNumber, RowPage
from app.deps import DatasetsReader, DatasetsWriter, ServiceDep, SessionDep
from app.web import problems
from app.web.idempotency import IdempotencyKey
from app.web.paging import Page
from app.web.problems import documented
from core.contract.spec import ModelId, ModelRef, Revision

FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "JSONL with images as data URIs, or Parquet with `messages` and `images`.",
                        },
                        "name": {"type": "string", "maxLength": 120},
                        "expires_at": {
                            "type": "string",
                            "format": "date-time",
                            "description": "No new job can have it from then on, and its bytes are removed.",
                        },
                    },
                }
            }
        },
    }
}
WAV = "audio/wav"
router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.post(
    "",
    status_code=201,
    openapi_extra=FORM,
    responses=documented(
        problems.INVALID_DATASET,
        problems.MALFORMED_REQUEST,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.BODY_TOO_LARGE,
        problems.STORAGE_QUOTA_EXCEEDED,
        problems.STORAGE_FULL,
        problems.STORAGE_UNAVAILABLE,
        problems.BUSY,
        *problems.REPEATED,
    ),
    response_model=DatasetView,
)
async def upload(
    request: Request,
    caller: DatasetsWriter,
    session: SessionDep,
    deps: ServiceDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Upload rows. Every row is checked before the answer; a bad one refuses the file and is named."""
    created = await service.receive(request, caller, session, deps, idempotency_key=idempotency_key)
    return created.answer(response)


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def list_datasets(
    query: Annotated[DatasetQuery, Query()], caller: DatasetsReader, session: SessionDep, deps: ServiceDep
) -> Page[DatasetView]:
    """Datasets, newest first."""
    return await service.list_datasets(session, tenant=caller.tenant, query=query, signer=deps.keyring)


@router.get("/{dataset_id}", responses=documented(problems.NOT_FOUND))
async def get(dataset_id: str, caller: DatasetsReader, session: SessionDep) -> DatasetView:
    """One dataset: its format, rows, bytes and digest, and whether it can be used."""
    return DatasetView.of(await queries.get_dataset(session, tenant=caller.tenant, dataset_id=dataset_id))


@router.patch(
    "/{dataset_id}",
    responses=documented(
        problems.NOT_FOUND, problems.DATASET_EXPIRED, problems.MALFORMED_REQUEST, problems.BODY_TOO_LARGE
    ),
)
async def change(dataset_id: str, changes: DatasetChanges, caller: DatasetsWriter, session: SessionDep) -> DatasetView:
    """Say when it expires. Its rows never change."""
    return DatasetView.of(
        await service.change_dataset(
            session, tenant=caller.tenant, dataset_id=dataset_id, expires_at=changes.expires_at
        )
    )


@router.get(
    "/{dataset_id}/rows",
    responses=documented(problems.NOT_FOUND, problems.OBJECT_MISSING, problems.INVALID_DATASET, problems.BUSY),
)
async def rows(
    request: Request,
    dataset_id: str,
    caller: DatasetsReader,
    session: SessionDep,
    deps: ServiceDep,
    after: Annotated[int, Query(ge=0, le=10**9, description="Only rows with a greater number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
) -> RowPage:
    """The rows as they were uploaded; images and audio are set apart, with a URL each."""
    return await contents.page_of_rows(request, caller, session, deps, dataset_id=dataset_id, after=after, limit=limit)


@router.get(
    "/{dataset_id}/rows/{number}/images/{index}",
    response_class=Response,
    responses={
        **documented(problems.NOT_FOUND, problems.OBJECT_MISSING, problems.INVALID_DATASET, problems.BUSY),
        200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}},
    },
)
async def image(
    request: Request,
    dataset_id: str,
    number: RowNumber,
    index: MediaIndex,
    caller: DatasetsReader,
    session: SessionDep,
    deps: ServiceDep,
) -> Response:
    """One image of a row, as it was uploaded."""
    return await contents.send_image(request, caller, session, deps, dataset_id=dataset_id, number=number, index=index)


@router.get(
    "/{dataset_id}/rows/{number}/audio/{index}",
    response_class=Response,
    responses={
        **documented(
            problems.NOT_FOUND,
            problems.OBJECT_MISSING,
            problems.PRECONDITION_FAILED,
            problems.RANGE_NOT_SATISFIABLE,
            problems.INVALID_DATASET,
            problems.BUSY,
        ),
        200: {"content": {WAV: {}}},
        206: {"content": {WAV: {}}, "description": "The range that was asked for."},
        304: {"description": "As it was."},
    },
)
async def audio(
    request: Request,
    dataset_id: str,
    number: RowNumber,
    index: MediaIndex,
    caller: DatasetsReader,
    session: SessionDep,
    deps: ServiceDep,
) -> Response:
    """One audio file of a row, as it was uploaded. Players ask for ranges of it."""
    return await contents.send_audio(request, caller, session, deps, dataset_id=dataset_id, number=number, index=index)


@router.get(
    "/{dataset_id}/statistics",
    responses=documented(
        problems.NOT_FOUND,
        problems.OBJECT_MISSING,
        problems.INVALID_DATASET,
        problems.INVALID_MODEL,
        problems.HUB_UNAVAILABLE,
        problems.BUSY,
    ),
)
async def statistics(
    request: Request,
    dataset_id: str,
    caller: DatasetsReader,
    session: SessionDep,
    deps: ServiceDep,
    model: Annotated[
        ModelId | None,
        Query(description="Count its tokens: a hub id, or `local/<directory>`. Without it they are estimated."),
    ] = None,
    revision: Annotated[Revision | None, Query(description="Branch, tag or commit of a hub model.")] = None,
) -> FiguresView:
    """How many rows, images and sounds, how large, how long, and how many tokens; one pass over the file."""
    reference = ModelRef(id=model, revision=revision) if model is not None else None
    return await contents.view_statistics(request, caller, session, deps, dataset_id=dataset_id, model=reference)


@router.delete("/{dataset_id}", status_code=204, responses=documented(problems.NOT_FOUND, problems.DATASET_IN_USE))
async def remove(dataset_id: str, caller: DatasetsWriter, session: SessionDep, deps: ServiceDep) -> None:
    """Remove the rows for good. Refused while an unfinished job needs them."""
    await service.remove_dataset(session, tenant=caller.tenant, dataset_id=dataset_id, storage=deps.storage)
