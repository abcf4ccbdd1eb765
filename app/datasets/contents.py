"""What is in a dataset: rows, images, audio, statistics. A child process reads the file; nothing here changes it."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller
from app.datasets.expiry import unusable_reason
from app.datasets.queries import get_dataset
from app.datasets.schemas import FiguresView, RowPage, RowView
from app.datasets.upload import scratch_file
from app.db.engine import release
from app.deps import Service
from app.hub_tokens.service import token_of
from app.models.files import ModelText, read_model_text
from app.parsing import Died, parse
from app.parsing.children import Callbacks
from app.parsing.contents import Audio, Image
from app.parsing.operations import AUDIO, IMAGE, PAGE, STATISTICS, Operation, bounds_of
from app.parsing.row_statistics import DatasetStatistics
from app.parsing.validation import InvalidRows
from app.web import problems
from app.web.problems import Problem
from app.web.ranges import FOREVER, decide, etag
from app.web.threads import run_in_thread
from core.contract.spec import ModelRef
from core.storage import ObjectMissing
from quant_experts.planning.errors import HubUnavailable, Unreadable
from quant_experts.spec.prefixes import LOCAL

Result = TypeVar("Result")
Media = TypeVar("Media", Image, Audio)
WAV = "audio/wav"
AS_A_FILE = {"Content-Security-Policy": "default-src 'none'; sandbox"}
"""Headers of an uploaded file: a browser that opens it runs and loads nothing."""


async def page_of_rows(
    request: Request,
    caller: Caller,
    session: AsyncSession,
    deps: Service,
    *,
    dataset_id: str,
    after: int,
    limit: int,
) -> RowPage:
    """Rows with a greater number than ``after``. Raises Problem 429, and as ``parse_dataset``."""
    async with deps.reading(request, caller):
        rows = await parse_dataset(session, caller, deps, PAGE, after, limit + 1, dataset_id=dataset_id)
    views = [RowView.of(dataset_id, row) for row in rows[:limit]]
    return RowPage(data=views, has_more=len(rows) > limit, next_after=views[-1].number if views else after)


async def send_image(
    request: Request, caller: Caller, session: AsyncSession, deps: Service, *, dataset_id: str, number: int, index: int
) -> Response:
    """One image of a row, as it was uploaded. Raises as ``_media_of_row``."""
    image, data = await _media_of_row(request, caller, session, deps, IMAGE, dataset_id, number, index)
    headers = {**AS_A_FILE, "Cache-Control": FOREVER}
    return Response(data, media_type=f"image/{image.header.format.lower()}", headers=headers)


async def send_audio(
    request: Request, caller: Caller, session: AsyncSession, deps: Service, *, dataset_id: str, number: int, index: int
) -> Response:
    """One audio file of a row, or a range of it. Raises as ``_media_of_row`` and ``decide``."""
    _, data = await _media_of_row(request, caller, session, deps, AUDIO, dataset_id, number, index)
    tag = etag(hashlib.sha256(data).hexdigest())
    answer = decide(request, [data], name=f"audio {index} of row {number}", tag=tag, headers=AS_A_FILE)
    return answer if isinstance(answer, Response) else answer.response(request, deps.storage, media_type=WAV)


async def _media_of_row(
    request: Request,
    caller: Caller,
    session: AsyncSession,
    deps: Service,
    operation: Operation[Media | None],
    dataset_id: str,
    number: int,
    index: int,
) -> tuple[Media, bytes]:
    """Raises Problem 404, 429, and as ``parse_dataset``."""
    async with deps.reading(request, caller):
        media = await parse_dataset(session, caller, deps, operation, number, index, dataset_id=dataset_id)
    if media is None or media.data is None:
        raise Problem(problems.NOT_FOUND, f"row {number} of {dataset_id} has no {operation.name} {index}")
    return media, media.data


async def view_statistics(
    request: Request,
    caller: Caller,
    session: AsyncSession,
    deps: Service,
    *,
    dataset_id: str,
    model: ModelRef | None = None,
) -> FiguresView:
    """Statistics over all rows, with the tokens of ``model``. Raises Problem 429, and as ``model_text_of`` and
    ``statistics_of``."""
    on_hub = model is not None and not model.id.startswith(LOCAL)
    async with AsyncExitStack() as slots:
        await slots.enter_async_context((deps.planning if on_hub else deps.reading)(request, caller))
        text = await model_text_of(session, caller, deps, dataset_id=dataset_id, model=model)
        if on_hub:  # the first slot stays taken: the files from the hub are in memory until the rows have been read
            await slots.enter_async_context(deps.readers.slot(caller.tenant))
        statistics = await statistics_of(session, caller, deps, dataset_id=dataset_id, text=text)
    name, commit = (None if model is None else model.id), (None if text is None else text.commit)
    return FiguresView.of(statistics, model=name, commit=commit)


async def parse_dataset(
    session: AsyncSession,
    caller: Caller,
    deps: Service,
    operation: Operation[Result],
    *arguments: Any,
    dataset_id: str,
    callbacks: Callbacks | None = None,
) -> Result:
    """The result of ``operation`` on the dataset's file, run in a child process that may use ``callbacks``. Raises
    Problem: 404; 422 when its rows kill the child; 500 when its bytes are gone."""
    dataset = await get_dataset(session, tenant=caller.tenant, dataset_id=dataset_id)
    wrong = unusable_reason(dataset)
    if wrong is not None or dataset.key is None:
        raise Problem(problems.NOT_FOUND, wrong or "")
    key = dataset.key
    await release(session)
    try:
        with scratch_file(deps.settings) as path:
            await run_in_thread(lambda: deps.storage.fetch(key, path))
            return await parse(operation, bounds_of(deps.settings), *arguments, files=[path], callbacks=callbacks)
    except (ObjectMissing, InvalidRows) as error:
        raise Problem(problems.OBJECT_MISSING, f"the rows of {dataset_id} are not as they were uploaded") from error
    except Died as died:
        raise Problem(problems.INVALID_DATASET, f"the rows of {dataset_id}: {died}") from None


async def model_text_of(
    session: AsyncSession, caller: Caller, deps: Service, *, dataset_id: str, model: ModelRef | None
) -> ModelText | None:
    """The files that count the tokens of a dataset's rows; waits for the hub where the model is there. None without a
    model.

    Raises Problem: 404 without the dataset; 422 for a model that cannot be read; 409 when the tenant's hub token cannot
    be opened; 503 when the hub does not answer.
    """
    if model is None:
        return None
    await get_dataset(session, tenant=caller.tenant, dataset_id=dataset_id)
    token = await token_of(session, tenant=caller.tenant, settings=deps.settings)
    await release(session)
    try:
        text = await run_in_thread(lambda: read_model_text(model, deps.settings, token=token))
    except Unreadable as error:
        raise Problem(problems.INVALID_MODEL, str(error)) from None
    except HubUnavailable as error:
        raise Problem(problems.HUB_UNAVAILABLE, str(error), headers={"Retry-After": "10"}) from None
    if text is None:
        raise Problem(problems.INVALID_MODEL, f"{model.id} lies on the workers' machine and cannot be read here")
    return text


async def statistics_of(
    session: AsyncSession, caller: Caller, deps: Service, *, dataset_id: str, text: ModelText | None
) -> DatasetStatistics:
    """Statistics over all rows. Raises Problem 422 for a model whose tokenizer cannot be used, and as
    ``parse_dataset``."""
    try:
        return await parse_dataset(
            session,
            caller,
            deps,
            STATISTICS,
            text.names if text is not None else None,
            dataset_id=dataset_id,
            callbacks=text.callbacks if text is not None else None,
        )
    except Unreadable as error:
        raise Problem(problems.INVALID_MODEL, str(error)) from None
