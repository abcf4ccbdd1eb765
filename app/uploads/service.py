"""An upload in parts: begin, take a part, make a dataset of all, abort."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller
from app.access.quotas import StorageMeter, storage_quota
from app.datasets.expiry import expiry_of_new
from app.datasets.service import store_dataset
from app.datasets.upload import Upload, scratch_file
from app.db.engine import OpenSession
from app.db.pipeline import transaction_of
from app.db.tenancy import find_owned
from app.deps import Service
from app.parsing.validation import Contents
from app.uploads import parts
from app.uploads.parts import Part, TwoVersions
from app.uploads.schemas import MOST_PART_BYTES, NewUpload, UploadView
from app.web import problems
from app.web.idempotency import Created, Idempotency, Outcome
from app.web.problems import Problem
from core.contract import uploads
from core.contract.ids import new_id
from core.ledger.tables import Dataset
from core.settings import Settings
from core.storage import ObjectMissing, Storage

MOST_UNFINISHED = 200
"""Unfinished uploads of one tenant. All are listed whenever a part of any arrives."""


async def begin_upload_once(
    session: AsyncSession, caller: Caller, deps: Service, *, new: NewUpload, idempotency_key: str | None
) -> Outcome:
    """Begin an upload; a repeated request gets the same one. Raises Problem as ``begin_upload``."""
    body = new.model_dump(mode="json")
    idempotency = Idempotency.of(caller.tenant, idempotency_key, "POST /v1/datasets/uploads", body)
    replay = await idempotency.replay(deps.sessions)
    if replay is not None:
        return replay
    settings = deps.settings
    upload_id = await begin_upload(tenant=caller.tenant, name=new.name, storage=deps.storage, settings=settings)
    view = UploadView.of(upload_id, new.name, [], most_bytes=settings.max_dataset_bytes)
    created = Created(view, f"/v1/datasets/uploads/{upload_id}")
    # Of two requests at once the second begins an upload that nobody learns of; it expires.
    await idempotency.store(await transaction_of(session), created)
    return created


async def view_upload(caller: Caller, deps: Service, *, upload_id: str) -> UploadView:
    """Raises Problem 404."""
    _, name, there = await upload_of(tenant=caller.tenant, upload_id=upload_id, storage=deps.storage)
    return UploadView.of(upload_id, name, there, most_bytes=deps.settings.max_dataset_bytes)


async def begin_upload(*, tenant: str, name: str | None, storage: Storage, settings: Settings) -> str:
    """Raises Problem 403 when too many of the tenant's are not complete."""
    if await asyncio.to_thread(parts.unfinished, storage, tenant) >= MOST_UNFINISHED:
        detail = f"{tenant} has {MOST_UNFINISHED} unfinished uploads: complete or abort one; they expire after a day"
        raise Problem(problems.STORAGE_QUOTA_EXCEEDED, detail)
    upload_id = new_id("up")
    with scratch_file(settings) as path:
        await asyncio.to_thread(parts.begin, storage, parts.folder_of(tenant, upload_id), name, path)
    return upload_id


async def upload_of(*, tenant: str, upload_id: str, storage: Storage) -> tuple[str, str | None, list[Part]]:
    """Folder, name and stored parts of the upload. Raises Problem 404, also for an expired one."""
    if uploads.UPLOAD_ID.fullmatch(upload_id) and uploads.expires_at(upload_id) > datetime.now(UTC):
        folder = parts.folder_of(tenant, upload_id)
        with contextlib.suppress(ObjectMissing):
            name = await asyncio.to_thread(parts.name_of, storage, folder)
            return folder, name, await asyncio.to_thread(parts.stored_parts, storage, folder)
    raise Problem(problems.NOT_FOUND, f"no upload {upload_id!r}: it was completed, aborted, or has expired")


async def store_part(
    body: AsyncIterator[bytes],
    *,
    sessions: OpenSession,
    tenant: str,
    upload_id: str,
    number: int,
    storage: Storage,
    settings: Settings,
    meter: StorageMeter,
) -> Part:
    """Store a part, in place of an earlier version. Raises Problem 404, 413, 422 for an empty part, and 403 when it
    exceeds the quota."""
    folder, _, there = await upload_of(tenant=tenant, upload_id=upload_id, storage=storage)
    replacement = sum(part.bytes for part in there if part.number == number)
    others = sum(part.bytes for part in there) - replacement
    room = min(MOST_PART_BYTES, settings.max_dataset_bytes - others)
    uploads = await meter.unfinished(tenant, fresh=True)
    async with sessions() as session:  # not held while the bytes come in
        uploads -= replacement
        quota = await storage_quota(session, tenant=tenant, settings=settings, meter=meter, uploads=uploads)
    quota.check(1, unread=True)
    with scratch_file(settings) as path:
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as file:
            async for chunk in body:
                size += len(chunk)
                if size > room:
                    detail = f"at most {room} bytes are accepted for this part"
                    raise Problem(problems.BODY_TOO_LARGE, detail, headers={"Connection": "close"})
                quota.check(size, unread=True)
                digest.update(chunk)
                file.write(chunk)
        if size == 0:
            errors = [{"pointer": "", "detail": "a part has at least one byte"}]
            raise Problem(problems.INVALID_REQUEST, f"part {number} is empty", errors=errors)
        part = Part(number, size, digest.hexdigest())
        await asyncio.to_thread(parts.put, storage, folder, part, path)
    if part not in there:
        removed_on_error = partial(_removed_on_error, storage, folder, part)
        # A refused part goes while the lock is held: the next one would count it too, and be refused in its place.
        async with removed_on_error(), meter.adding(tenant), removed_on_error():
            await _check_again(sessions, tenant, folder, part, storage, settings, meter)
    surplus = await asyncio.to_thread(parts.remove_others, storage, folder, part)
    meter.add_unfinished(tenant, -surplus)
    return part


@asynccontextmanager
async def _removed_on_error(storage: Storage, folder: str, part: Part) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(parts.remove, storage, folder, part)
        raise


async def _check_again(
    sessions: OpenSession,
    tenant: str,
    folder: str,
    part: Part,
    storage: Storage,
    settings: Settings,
    meter: StorageMeter,
) -> None:
    """Check the quota again, with the part stored and the lock held. Raises Problem 403 when it is exceeded.

    Concurrent parts have all passed the first check. They are stored before they are counted, so that none is missed,
    and counted one after the other, so that only those that do not fit are removed.
    """
    parts_there = await asyncio.to_thread(parts.stored_parts, storage, folder)
    replacement = sum(other.bytes for other in parts_there if other.number == part.number)
    uploads = await meter.unfinished(tenant, fresh=True) - replacement
    async with sessions() as session:
        room = await storage_quota(session, tenant=tenant, settings=settings, meter=meter, uploads=uploads)
    room.check(part.bytes)


async def complete_upload(
    session: AsyncSession,
    *,
    tenant: str,
    upload_id: str,
    sha256: str,
    expires_at: datetime | None,
    check: Callable[[Upload], Awaitable[Contents]],
    storage: Storage,
    settings: Settings,
    meter: StorageMeter,
) -> Dataset:
    """Create the dataset of all parts. ``check`` validates the joined file.

    Raises Problem 404; 409 when parts are missing or the digest differs; 422 when the file is no dataset. The parts
    stay when it is refused, so that a wrong part can be sent again. Repeated and concurrent requests create one
    dataset, because an answer may be lost.
    """
    dataset_id = "ds_" + upload_id.removeprefix("up_")
    try:
        folder, name, there = await upload_of(tenant=tenant, upload_id=upload_id, storage=storage)
    except Problem:
        dataset = await find_owned(session, Dataset, dataset_id, tenant=tenant)
        if dataset is None or dataset.sha256 != sha256:
            raise
        return dataset
    missing = sorted(set(range(1, max((part.number for part in there), default=1) + 1)) - {p.number for p in there})
    if missing:
        numbers = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        raise Problem(problems.UPLOAD_INCOMPLETE, f"missing parts: {numbers}; parts are counted from 1 without gaps")
    with scratch_file(settings) as path:
        try:
            digest = await asyncio.to_thread(_join, storage, folder, there, path)
        except (TwoVersions, ObjectMissing) as error:
            raise Problem(problems.UPLOAD_INCOMPLETE, str(error)) from None
        if digest != sha256:
            detail = (
                f"the {len(there)} parts together have the sha256 {digest}: compare the parts, send again what differs"
            )
            raise Problem(problems.UPLOAD_INCOMPLETE, detail)
        end = expiry_of_new(expires_at, settings)
        upload = Upload(path=path, bytes=path.stat().st_size, sha256=digest, name=name, expires_at=end)
        dataset = await store_dataset(
            session,
            tenant=tenant,
            upload=upload,
            contents=await check(upload),
            storage=storage,
            settings=settings,
            meter=meter,
            replacement=sum(part.bytes for part in there),
            dataset_id=dataset_id,
        )
    await _forget(storage, folder)
    return dataset


async def abort_upload(*, tenant: str, upload_id: str, storage: Storage) -> None:
    """Raises Problem 404."""
    folder, _, _ = await upload_of(tenant=tenant, upload_id=upload_id, storage=storage)
    await asyncio.to_thread(storage.delete_under, folder)


def _join(storage: Storage, folder: str, there: list[Part], path: Path) -> str:
    with path.open("wb") as target:
        return parts.concatenate(storage, folder, there, target)


async def _forget(storage: Storage, folder: str) -> None:
    """Remove the parts. Those that cannot be removed now are swept when they expire."""
    with contextlib.suppress(OSError):
        await asyncio.to_thread(storage.delete_under, folder)
