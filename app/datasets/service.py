"""Keep and remove datasets. The bytes are stored before the row exists and removed after it is gone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from app.access.quotas import StorageMeter, room_of
from app.audit.service import Action, note
from app.datasets.expiry import still_to_come, what_is_wrong
from app.datasets.figures import Figures
from app.datasets.upload import Upload, draft
from app.datasets.validation import Contents, InvalidRows
from app.db.engine import release
from app.db.tenancy import owned
from app.hub_tokens.service import token_of
from app.jobs.queries import jobs_needing
from app.parsing import Died, parse
from app.parsing.children import Asked
from app.parsing.operations import CHECK, FIGURES, Operation, bounds_of
from app.plans.inputs import ModelText, read_model_text
from app.web import problems
from app.web.problems import Problem
from app.web.threads import aside
from core.contract.ids import new_id
from core.contract.spec import ModelRef
from core.crash_points import reach
from core.ledger.tables import Dataset
from core.settings import Settings
from core.storage import ObjectMissing, Storage
from quant_experts.planning.errors import HubUnavailable, Unreadable

Found = TypeVar("Found")
DATASET_ID = re.compile(r"ds_[0-9a-f]{32}")


async def find_dataset(session: AsyncSession, *, tenant: str, dataset_id: str, lock: bool = False) -> Dataset | None:
    if DATASET_ID.fullmatch(dataset_id) is None:
        return None
    statement = owned(Dataset, tenant).where(Dataset.id == dataset_id)
    return await session.scalar(statement.with_for_update() if lock else statement)


async def get_dataset(session: AsyncSession, *, tenant: str, dataset_id: str, lock: bool = False) -> Dataset:
    """Raises Problem 404."""
    dataset = await find_dataset(session, tenant=tenant, dataset_id=dataset_id, lock=lock)
    if dataset is None:
        raise Problem(problems.NOT_FOUND, f"no dataset {dataset_id!r}")
    return dataset


async def look_into(
    session: AsyncSession,
    operation: Operation[Found],
    *arguments: Any,
    tenant: str,
    dataset_id: str,
    storage: Storage,
    settings: Settings,
    asked: Asked | None = None,
) -> Found:
    """What ``operation`` finds in the dataset's file, in a child that may ``ask`` for more. Raises Problem: 404; 422
    when its rows kill the child; 500 when its bytes are gone."""
    dataset = await get_dataset(session, tenant=tenant, dataset_id=dataset_id)
    wrong = what_is_wrong(dataset)
    if wrong is not None or dataset.key is None:
        raise Problem(problems.NOT_FOUND, wrong or "")
    key = dataset.key
    await release(session)
    try:
        with draft(settings) as path:
            await aside(lambda: storage.fetch(key, path))
            return await parse(operation, bounds_of(settings), *arguments, files=[path], asked=asked)
    except (ObjectMissing, InvalidRows) as error:
        raise Problem(problems.OBJECT_MISSING, f"the rows of {dataset_id} are not as they were uploaded") from error
    except Died as died:
        raise Problem(problems.INVALID_DATASET, f"the rows of {dataset_id}: {died}") from None


async def model_text_of(
    session: AsyncSession, *, tenant: str, dataset_id: str, model: ModelRef | None, settings: Settings
) -> ModelText | None:
    """What counts the tokens of a dataset's rows; waits for the hub when the model is there. None without a model.

    Raises Problem: 404 without the dataset; 422 for a model that cannot be read; 409 when the tenant's hub token cannot
    be opened; 503 when the hub does not answer.
    """
    if model is None:
        return None
    await get_dataset(session, tenant=tenant, dataset_id=dataset_id)
    token = await token_of(session, tenant=tenant, settings=settings)
    await release(session)
    try:
        found = await aside(lambda: read_model_text(model, settings, token=token))
    except Unreadable as error:
        raise Problem(problems.INVALID_MODEL, str(error)) from None
    except HubUnavailable as error:
        raise Problem(problems.HUB_UNAVAILABLE, str(error), headers={"Retry-After": "10"}) from None
    if found is None:
        raise Problem(problems.INVALID_MODEL, f"{model.id} is where the workers are, and cannot be read here")
    return found


async def statistics_of(
    session: AsyncSession,
    *,
    tenant: str,
    dataset_id: str,
    text: ModelText | None,
    storage: Storage,
    settings: Settings,
) -> Figures:
    """Figures over all rows. Raises Problem 422 for a model whose tokenizer cannot be used; as ``look_into``."""
    try:
        return await look_into(
            session,
            FIGURES,
            text.names if text is not None else None,
            tenant=tenant,
            dataset_id=dataset_id,
            storage=storage,
            settings=settings,
            asked=text.asked if text is not None else None,
        )
    except Unreadable as error:
        raise Problem(problems.INVALID_MODEL, str(error)) from None


async def checked(upload: Upload, settings: Settings) -> Contents:
    """What the file holds. Raises Problem 422, with an error per bad row, when it is not a dataset."""
    try:
        return await parse(CHECK, bounds_of(settings), files=[upload.path])
    except InvalidRows as error:
        raise Problem(problems.INVALID_DATASET, str(error), errors=error.errors) from None
    except Died as died:
        errors = [{"pointer": "/file", "detail": str(died)}]
        raise Problem(problems.INVALID_DATASET, f"the file: {died}", errors=errors) from None


async def keep_upload(
    session: AsyncSession,
    *,
    tenant: str,
    upload: Upload,
    contents: Contents,
    storage: Storage,
    settings: Settings,
    meter: StorageMeter,
    replaced: int = 0,
    dataset_id: str | None = None,
    remember: Callable[[Dataset], Awaitable[None]] | None = None,
) -> Dataset:
    """``replaced``: bytes of the parts that the file was made of; ``dataset_id``: which may be there already, when they
    were completed twice at once, and is then returned; ``remember``: part of the transaction that makes it.

    Raises Problem 403 when there is no room for it; then nothing is kept.
    """
    uploads = await meter.unfinished(tenant, fresh=True) - replaced
    room = await room_of(session, tenant=tenant, settings=settings, meter=meter, uploads=uploads)
    room.check(upload.bytes)
    await release(session)
    once, dataset_id = dataset_id is not None, dataset_id or new_id("ds")
    # Of two that make the same dataset each has an object of its own: the second removes it again.
    key = f"datasets/{dataset_id}/{new_id('rows') if once else 'rows'}.{contents.format}"
    await asyncio.to_thread(storage.put, key, upload.path)
    reach("dataset.stored")
    dataset = Dataset(
        id=dataset_id,
        tenant=tenant,
        name=upload.name,
        format=contents.format,
        status="ready",
        bytes=upload.bytes,
        sha256=upload.sha256,
        key=key,
        rows=contents.rows,
        images=contents.images,
        expires_at=upload.expires_at,
    )
    there: Dataset | None = None
    committing = False
    try:
        # Once more, while nobody else adds: uploads at the same moment have all found the same room before.
        async with meter.adding(tenant):
            uploads = await meter.unfinished(tenant, fresh=True) - replaced
            if once:
                there = await find_dataset(session, tenant=tenant, dataset_id=dataset_id)
            if there is None:
                room = await room_of(session, tenant=tenant, settings=settings, meter=meter, uploads=uploads)
                room.check(upload.bytes)
                session.add(dataset)
                await session.flush()
                await note(session, Action.DATASET_CREATED, dataset_id, bytes=upload.bytes, sha256=upload.sha256)
                await session.refresh(dataset)
                if remember is not None:
                    await remember(dataset)
            committing = there is None
            await session.commit()
    except BaseException:
        # When the connection breaks at COMMIT the row may be there, and then it needs its object. An object without a
        # row does no harm, and `worker.keeper.reconcile` finds it.
        if not committing:
            await session.rollback()
            await asyncio.to_thread(storage.delete, key)
        raise
    if there is not None:
        await asyncio.to_thread(storage.delete, key)
    return there or dataset


async def change_dataset(
    session: AsyncSession, *, tenant: str, dataset_id: str, expires_at: datetime | None
) -> Dataset:
    """Raises Problem 404; 422 for a time that is over, and when its rows are gone already."""
    dataset = await get_dataset(session, tenant=tenant, dataset_id=dataset_id, lock=True)
    if dataset.key is None:
        raise Problem(problems.DATASET_EXPIRED, what_is_wrong(dataset) or "")
    dataset.expires_at = None if expires_at is None else still_to_come(expires_at)
    await note(
        session, Action.DATASET_CHANGED, dataset_id, expires_at=None if expires_at is None else expires_at.isoformat()
    )
    await session.flush()
    return dataset


async def remove_dataset(session: AsyncSession, *, tenant: str, dataset_id: str, storage: Storage) -> None:
    """Raises Problem 404, or 409 while an unfinished job needs it."""
    dataset = await get_dataset(session, tenant=tenant, dataset_id=dataset_id, lock=True)
    needing = await jobs_needing(session, tenant=tenant, dataset_id=dataset_id)
    if needing:
        raise Problem(problems.DATASET_IN_USE, f"dataset {dataset_id} is needed by {', '.join(needing)}")
    key = dataset.key
    await session.delete(dataset)
    await note(session, Action.DATASET_DELETED, dataset_id)
    await session.commit()
    if key is not None:
        await asyncio.to_thread(storage.delete, key)
