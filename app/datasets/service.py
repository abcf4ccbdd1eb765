"""Store, read, change and delete datasets. The bytes are stored before the row, and removed after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller
from app.access.quotas import StorageMeter, storage_quota
from app.audit.service import Action, note
from app.datasets.expiry import checked_expiry, unusable_reason
from app.datasets.queries import get_dataset, jobs_needing, page_of_datasets
from app.datasets.schemas import DatasetQuery, DatasetView
from app.datasets.upload import EXPIRES_AT, ExpiryFields, Upload, received
from app.db.engine import release
from app.db.pipeline import transaction_of
from app.db.tenancy import find_owned
from app.deps import Service
from app.parsing import Died, parse
from app.parsing.operations import CHECK, bounds_of
from app.parsing.validation import Contents, InvalidRows
from app.web import problems
from app.web.idempotency import Created, Idempotency, Outcome
from app.web.paging import Page, Signer, as_page
from app.web.problems import Problem
from core.contract.ids import new_id
from core.crash_points import reach
from core.ledger.tables import Dataset
from core.settings import Settings
from core.storage import Storage

FORM_BYTES = 64 * 1024
"""Bytes of a body that may belong to the form around the file."""


async def receive(
    request: Request,
    caller: Caller,
    session: AsyncSession,
    deps: Service,
    *,
    end: ExpiryFields = EXPIRES_AT,
    idempotency_key: str | None = None,
) -> Outcome:
    """Receive the body of an upload, check its rows and store it. Raises Problem when there is no room, or when the
    file is not a dataset."""
    length = request.headers.get("content-length", "")
    uploads = await deps.meter.unfinished(caller.tenant, fresh=True)
    async with deps.sessions_of(caller)() as before:  # not held while the bytes come in
        more = int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else 0
        room = await storage_quota(
            before, tenant=caller.tenant, settings=deps.settings, meter=deps.meter, uploads=uploads
        )
        room.check(max(0, more - FORM_BYTES))
    async with received(request, deps.settings, end) as file:
        body = {"sha256": file.sha256, "name": file.name}  # its expiry may be relative to now
        idempotency = Idempotency.of(caller.tenant, idempotency_key, "POST /v1/datasets", body)
        replay = await idempotency.replay(deps.sessions)
        if replay is not None:
            return replay

        async def store(dataset: Dataset) -> None:
            await idempotency.store(await transaction_of(session), _created(dataset))

        async with deps.reading(request, caller):
            contents = await checked(file, deps.settings)
        return _created(
            await store_dataset(
                session,
                tenant=caller.tenant,
                upload=file,
                contents=contents,
                remember=store,
                storage=deps.storage,
                settings=deps.settings,
                meter=deps.meter,
            )
        )


def _created(dataset: Dataset) -> Created:
    return Created(DatasetView.of(dataset), f"/v1/datasets/{dataset.id}")


async def list_datasets(
    session: AsyncSession, *, tenant: str, query: DatasetQuery, signer: Signer
) -> Page[DatasetView]:
    """Newest first. Raises Problem for a cursor of another listing."""
    rows, cursor = await page_of_datasets(session, tenant=tenant, query=query, signer=signer)
    return as_page(rows, cursor, DatasetView.of)


async def checked(upload: Upload, settings: Settings) -> Contents:
    """The contents of the file. Raises Problem 422, with an error per kind of bad row, when it is no dataset."""
    try:
        return await parse(CHECK, bounds_of(settings), files=[upload.path])
    except InvalidRows as error:
        raise Problem(problems.INVALID_DATASET, str(error), errors=error.errors) from None
    except Died as died:
        errors = [{"pointer": "/file", "detail": str(died)}]
        raise Problem(problems.INVALID_DATASET, f"the file: {died}", errors=errors) from None


async def store_dataset(
    session: AsyncSession,
    *,
    tenant: str,
    upload: Upload,
    contents: Contents,
    storage: Storage,
    settings: Settings,
    meter: StorageMeter,
    replacement: int = 0,
    dataset_id: str | None = None,
    remember: Callable[[Dataset], Awaitable[None]] | None = None,
) -> Dataset:
    """Store the file and its row. ``replacement``: bytes of the parts that the file was joined from. ``dataset_id``:
    the dataset of completed parts; a concurrent request may have created it, and then it is returned. ``remember`` runs
    in the transaction that creates the row.

    Raises Problem 403 when it exceeds the quota; then nothing is stored.
    """
    uploads = await meter.unfinished(tenant, fresh=True) - replacement
    room = await storage_quota(session, tenant=tenant, settings=settings, meter=meter, uploads=uploads)
    room.check(upload.bytes)
    await release(session)
    once, dataset_id = dataset_id is not None, dataset_id or new_id("ds")
    # Two requests for the same dataset store two objects; the second removes its own.
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
    may_be_committed = False
    try:
        # Checked again under the lock: concurrent uploads have all passed the first check.
        async with meter.adding(tenant):
            uploads = await meter.unfinished(tenant, fresh=True) - replacement
            if once:
                there = await find_owned(session, Dataset, dataset_id, tenant=tenant)
            if there is None:
                room = await storage_quota(session, tenant=tenant, settings=settings, meter=meter, uploads=uploads)
                room.check(upload.bytes)
                session.add(dataset)
                await session.flush()
                await note(session, Action.DATASET_CREATED, dataset_id, bytes=upload.bytes, sha256=upload.sha256)
                await session.refresh(dataset)
                if remember is not None:
                    await remember(dataset)
            may_be_committed = there is None
            await session.commit()
    except BaseException:
        # When the connection breaks during COMMIT the row may exist, and then it needs its object. An object without a
        # row is harmless, and `worker.keeper.reconcile` finds it.
        if not may_be_committed:
            await session.rollback()
            await asyncio.to_thread(storage.delete, key)
        raise
    if there is not None:
        await asyncio.to_thread(storage.delete, key)
    return there or dataset


async def change_dataset(
    session: AsyncSession, *, tenant: str, dataset_id: str, expires_at: datetime | None
) -> Dataset:
    """Change the expiry. Raises Problem 404; 422 for a time in the past, or when its rows are removed."""
    dataset = await get_dataset(session, tenant=tenant, dataset_id=dataset_id, lock=True)
    if dataset.key is None:
        raise Problem(problems.DATASET_EXPIRED, unusable_reason(dataset) or "")
    dataset.expires_at = None if expires_at is None else checked_expiry(expires_at)
    await note(
        session, Action.DATASET_CHANGED, dataset_id, expires_at=None if expires_at is None else expires_at.isoformat()
    )
    await session.flush()
    return dataset


async def remove_dataset(session: AsyncSession, *, tenant: str, dataset_id: str, storage: Storage) -> None:
    """Raises Problem 404, or 409 while an unfinished job needs it."""
    dataset = await get_dataset(session, tenant=tenant, dataset_id=dataset_id, lock=True)
    jobs = await jobs_needing(session, tenant=tenant, dataset_id=dataset_id)
    if jobs:
        raise Problem(problems.DATASET_IN_USE, f"dataset {dataset_id} is needed by {', '.join(jobs)}")
    key = dataset.key
    await session.delete(dataset)
    await note(session, Action.DATASET_DELETED, dataset_id)
    await session.commit()
    if key is not None:
        await asyncio.to_thread(storage.delete, key)
