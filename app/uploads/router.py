"""``/v1/datasets/uploads``: a large file in parts, each of which can be sent again."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from app.datasets.schemas import DatasetView
from app.datasets.service import checked
from app.datasets.upload import Upload
from app.deps import DatasetsWriter, ServiceDep, SessionDep
from app.parsing.validation import Contents
from app.uploads import service
from app.uploads.schemas import MOST_PARTS, CompleteUpload, NewUpload, PartView, UploadView
from app.web import problems
from app.web.idempotency import IdempotencyKey
from app.web.problems import documented

PART_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
    }
}
STORAGE = (problems.STORAGE_FULL, problems.STORAGE_UNAVAILABLE)
router = APIRouter(prefix="/v1/datasets/uploads", tags=["datasets"])


@router.post(
    "",
    status_code=201,
    response_model=UploadView,
    responses=documented(problems.STORAGE_QUOTA_EXCEEDED, *problems.REPEATED, *STORAGE),
)
async def begin(
    new: NewUpload,
    caller: DatasetsWriter,
    session: SessionDep,
    deps: ServiceDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Begin an upload in parts. Send them in any order, and at once if you like, then complete it within a day."""
    created = await service.begin_upload_once(session, caller, deps, new=new, idempotency_key=idempotency_key)
    return created.answer(response)


@router.get("/{upload_id}", responses=documented(problems.NOT_FOUND, *STORAGE))
async def get(upload_id: str, caller: DatasetsWriter, deps: ServiceDep) -> UploadView:
    """Which parts have arrived, with their digests."""
    return await service.view_upload(caller, deps, upload_id=upload_id)


@router.put(
    "/{upload_id}/parts/{number}",
    openapi_extra=PART_BODY,
    responses=documented(problems.NOT_FOUND, problems.BODY_TOO_LARGE, problems.STORAGE_QUOTA_EXCEEDED, *STORAGE),
)
async def put_part(
    upload_id: str,
    number: Annotated[int, Path(ge=1, le=MOST_PARTS)],
    request: Request,
    caller: DatasetsWriter,
    deps: ServiceDep,
) -> PartView:
    """Send one part: the bytes themselves as the body. Sending it again replaces it."""
    part = await service.store_part(
        request.stream(),
        sessions=deps.sessions_of(caller),
        tenant=caller.tenant,
        upload_id=upload_id,
        number=number,
        storage=deps.storage,
        settings=deps.settings,
        meter=deps.meter,
    )
    return PartView.of(part)


@router.post(
    "/{upload_id}/complete",
    status_code=201,
    responses=documented(
        problems.NOT_FOUND,
        problems.MALFORMED_REQUEST,
        problems.UPLOAD_INCOMPLETE,
        problems.INVALID_DATASET,
        problems.STORAGE_QUOTA_EXCEEDED,
        problems.BUSY,
        *STORAGE,
    ),
)
async def complete(
    upload_id: str,
    whole: CompleteUpload,
    request: Request,
    caller: DatasetsWriter,
    session: SessionDep,
    deps: ServiceDep,
    response: Response,
) -> DatasetView:
    """Make the dataset of all parts. They stay when it is refused, so that a wrong one can be sent again."""

    async def check(upload: Upload) -> Contents:
        async with deps.reading(request, caller):
            return await checked(upload, deps.settings)

    dataset = await service.complete_upload(
        session,
        tenant=caller.tenant,
        upload_id=upload_id,
        sha256=whole.sha256,
        expires_at=whole.expires_at,
        check=check,
        storage=deps.storage,
        settings=deps.settings,
        meter=deps.meter,
    )
    response.headers["Location"] = f"/v1/datasets/{dataset.id}"
    return DatasetView.of(dataset)


@router.delete("/{upload_id}", status_code=204, responses=documented(problems.NOT_FOUND, *STORAGE))
async def abort(upload_id: str, caller: DatasetsWriter, deps: ServiceDep) -> None:
    """Give the upload up and forget its parts."""
    await service.abort_upload(tenant=caller.tenant, upload_id=upload_id, storage=deps.storage)
