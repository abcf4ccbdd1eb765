"""``/v1/datasets``: calibration rows, uploaded once, checked, immutable."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller
from app.access.quotas import room_of
from app.artifacts import ranges
from app.artifacts.sending import FOREVER, decide
from app.datasets import service
from app.datasets.schemas import DatasetChanges, DatasetQuery, DatasetView, FiguresView, RowPage, RowView
from app.datasets.upload import WRITTEN_OUT, EndFields, received
from app.db.pipeline import joined
from app.db.tenancy import owned
from app.deps import DatasetsReader, DatasetsWriter, Service, ServiceDep, SessionDep
from app.parsing.operations import AUDIO, IMAGE, PAGE
from app.plans.inputs import LOCAL
from app.web import problems
from app.web.idempotency import IdempotencyKey, Made, Once
from app.web.paging import Page, page_of
from app.web.problems import Problem, documented
from core.contract.spec import ModelId, ModelRef, Revision
from core.ledger.tables import Dataset

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
AS_A_FILE = {"Content-Security-Policy": "default-src 'none'; sandbox"}
"""Nothing in what somebody uploaded runs or is fetched, whoever opens it as a page of its own."""
FORM_BYTES = 64 * 1024
"""Of a body, what may be form and not file: a file that fits is not refused for its wrapping."""
RowNumber = Annotated[int, PathParameter(ge=1, le=10**9)]
MediaIndex = Annotated[int, PathParameter(ge=0, le=10**6)]
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
    parts: ServiceDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Upload rows. Every row is checked before the answer; a bad one refuses the file and is named."""
    dataset = await take(request, caller, session, parts, idempotency_key=idempotency_key)
    if isinstance(dataset, Response):
        return dataset
    response.headers["Location"] = f"/v1/datasets/{dataset.id}"
    return DatasetView.of(dataset)


async def take(
    request: Request,
    caller: Caller,
    session: AsyncSession,
    parts: Service,
    *,
    end: EndFields = WRITTEN_OUT,
    idempotency_key: str | None = None,
) -> Dataset | Response:
    """The body of an upload, kept; or the answer that an earlier request with the same key and body got. Raises Problem
    when there is no room, or when the file is not a dataset."""
    announced = request.headers.get("content-length", "")
    uploads = await parts.meter.unfinished(caller.tenant, fresh=True)
    async with parts.sessions_of(caller)() as before:  # not held while the bytes come in
        more = int(announced) if announced.isascii() and announced.isdecimal() and len(announced) < 19 else 0
        room = await room_of(before, tenant=caller.tenant, settings=parts.settings, meter=parts.meter, uploads=uploads)
        room.check(max(0, more - FORM_BYTES))
    async with received(request, parts.settings, end) as file:
        body = {"sha256": file.sha256, "name": file.name}  # its end may be counted from now
        once = Once.of(caller.tenant, idempotency_key, "POST /v1/datasets", body)
        kept = await once.kept(parts.sessions)
        if kept is not None:
            return kept

        async def remember(dataset: Dataset) -> None:
            await once.remember(await joined(session), Made(DatasetView.of(dataset), f"/v1/datasets/{dataset.id}"))

        async with parts.reading(request, caller):
            contents = await service.checked(file, parts.settings)
        return await service.keep_upload(
            session,
            tenant=caller.tenant,
            upload=file,
            contents=contents,
            remember=remember,
            storage=parts.storage,
            settings=parts.settings,
            meter=parts.meter,
        )


@router.get("", responses=documented(problems.INVALID_CURSOR))
async def list_datasets(
    query: Annotated[DatasetQuery, Query()], caller: DatasetsReader, session: SessionDep, parts: ServiceDep
) -> Page[DatasetView]:
    """Datasets, newest first."""
    statement = owned(Dataset, caller.tenant)
    if query.sha256 is not None:
        statement = statement.where(Dataset.sha256 == query.sha256)
    rows, cursor = await page_of(session, statement, Dataset, query=query, keyring=parts.keyring)
    return Page(data=[DatasetView.of(row) for row in rows], has_more=cursor is not None, next_cursor=cursor)


@router.get("/{dataset_id}", responses=documented(problems.NOT_FOUND))
async def get(dataset_id: str, caller: DatasetsReader, session: SessionDep) -> DatasetView:
    """One dataset: its format, rows, bytes and digest, and whether it can be used."""
    return DatasetView.of(await service.get_dataset(session, tenant=caller.tenant, dataset_id=dataset_id))


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
    parts: ServiceDep,
    after: Annotated[int, Query(ge=0, le=10**9, description="Only rows with a greater number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
) -> RowPage:
    """The rows as they were uploaded; images and audio are set apart, with a URL each."""
    async with parts.reading(request, caller):
        found = await service.look_into(
            session,
            PAGE,
            after,
            limit + 1,
            tenant=caller.tenant,
            dataset_id=dataset_id,
            storage=parts.storage,
            settings=parts.settings,
        )
    views = [RowView.of(dataset_id, row) for row in found[:limit]]
    return RowPage(data=views, has_more=len(found) > limit, next_after=views[-1].number if views else after)


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
    parts: ServiceDep,
) -> Response:
    """One image of a row, as it was uploaded."""
    async with parts.reading(request, caller):
        found = await service.look_into(
            session,
            IMAGE,
            number,
            index,
            tenant=caller.tenant,
            dataset_id=dataset_id,
            storage=parts.storage,
            settings=parts.settings,
        )
    if found is None or found.data is None:
        raise Problem(problems.NOT_FOUND, f"row {number} of {dataset_id} has no image {index}")
    headers = {**AS_A_FILE, "Cache-Control": FOREVER}
    return Response(found.data, media_type=f"image/{found.header.format.lower()}", headers=headers)


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
    parts: ServiceDep,
) -> Response:
    """One audio file of a row, as it was uploaded. Players ask for ranges of it."""
    async with parts.reading(request, caller):
        found = await service.look_into(
            session,
            AUDIO,
            number,
            index,
            tenant=caller.tenant,
            dataset_id=dataset_id,
            storage=parts.storage,
            settings=parts.settings,
        )
    if found is None or found.data is None:
        raise Problem(problems.NOT_FOUND, f"row {number} of {dataset_id} has no audio {index}")
    tag = ranges.etag(hashlib.sha256(found.data).hexdigest())
    answer = decide(request, [found.data], name=f"audio {index} of row {number}", tag=tag, headers=AS_A_FILE)
    return answer if isinstance(answer, Response) else answer.response(request, parts.storage, media_type=WAV)


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
    parts: ServiceDep,
    model: Annotated[
        ModelId | None,
        Query(description="Count its tokens: a hub id, or `local/<directory>`. Without it they are estimated."),
    ] = None,
    revision: Annotated[Revision | None, Query(description="Branch, tag or commit of a hub model.")] = None,
) -> FiguresView:
    """How many rows, images and sounds, how large, how long, and how many tokens; one pass over the file."""
    ref = ModelRef(id=model, revision=revision) if model is not None else None
    on_the_hub = ref is not None and not ref.id.startswith(LOCAL)
    async with AsyncExitStack() as turns:
        await turns.enter_async_context((parts.planning if on_the_hub else parts.reading)(request, caller))
        text = await service.model_text_of(
            session, tenant=caller.tenant, dataset_id=dataset_id, model=ref, settings=parts.settings
        )
        if on_the_hub:  # its turn is kept: what came from the hub is in memory until the rows have been read
            await turns.enter_async_context(parts.readers.turn(caller.tenant))
        found = await service.statistics_of(
            session,
            tenant=caller.tenant,
            dataset_id=dataset_id,
            text=text,
            storage=parts.storage,
            settings=parts.settings,
        )
    return FiguresView.of(found, model=model, commit=text.commit if text is not None else None)


@router.delete("/{dataset_id}", status_code=204, responses=documented(problems.NOT_FOUND, problems.DATASET_IN_USE))
async def remove(dataset_id: str, caller: DatasetsWriter, session: SessionDep, parts: ServiceDep) -> None:
    """Remove the rows for good. Refused while an unfinished job needs them."""
    await service.remove_dataset(session, tenant=caller.tenant, dataset_id=dataset_id, storage=parts.storage)
