"""What a plan reads: a model's headers and a few of the rows, all of it bounded in bytes and time."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from app.contract.local_model import model_fingerprint
from app.contract.spec import ModelRef
from app.contract.tables import Dataset
from app.datasets.upload import draft
from app.settings import Settings
from app.storage import ObjectMissing, Storage
from planning.errors import HubUnavailable, Unreadable
from planning.headers import ModelHeaders
from planning.hub import read_hub, read_hub_text, resolve_dataset
from planning.local import read_local, read_local_text
from planning.rows import Rows, parsed_parquet, parsed_text, sampled_rows, unknown_rows
from planning.text_files import TextFiles

LOCAL, UPLOADED = "local/", "ds_"
HUB_SECONDS = 20.0
SAMPLED_ROWS = 48
SAMPLED_BYTES = 8 << 20
SAMPLED_PARQUET = 64 << 20
"""Bytes of a file that is fetched as a whole for a look at its first rows."""
MOST_JUDGED = 512
MOST_THREADS = 100

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """``commit``: of a hub model; ``fingerprint``: of a local one."""

    headers: ModelHeaders
    commit: str | None = None
    fingerprint: str | None = None


async def aside(work: Callable[[], T]) -> T:
    """Run blocking ``work`` in a thread. ``app.turns`` bounds how many there are: none waits here.

    Who is cancelled keeps its turn until the thread ends, which nothing can cancel.
    """
    running = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=_limiter()))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


@functools.cache
def _limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(MOST_THREADS)


def local_directory(model_id: str, root: Path | None) -> Path | None:
    """The directory of ``local/<name>``; None when the root is mounted where the workers are, and not here.

    Raises Unreadable.
    """
    name = model_id.removeprefix(LOCAL)
    if root is None:
        raise Unreadable("model_not_found", "this service has no local models: QE_MODEL_ROOT is not set")
    if not root.is_dir():
        return None
    directory = (root / name).resolve()
    if "/" in name or not directory.is_dir() or not directory.is_relative_to(root.resolve()):
        raise Unreadable("model_not_found", f"no directory {name!r} below the service's model root")
    return directory


def read_model(model: ModelRef, settings: Settings) -> Model | None:
    """Blocks. None for a local model that only the workers see. Raises Unreadable, HubUnavailable."""
    if model.id.startswith(LOCAL):
        directory = local_directory(model.id, settings.model_root)
        if directory is None:
            return None
        try:
            return Model(read_local(directory), fingerprint=model_fingerprint(directory))
        except OSError as error:
            raise Unreadable("invalid_model", f"the model's files cannot be read: {error.strerror}") from None
    headers = read_hub(
        model.id, revision=model.revision, token=settings.hub_token, endpoint=_endpoint(), seconds=HUB_SECONDS
    )
    return Model(headers, commit=headers.commit)


def dataset_commit(repository: str, settings: Settings) -> str:
    """Blocks. Raises Unreadable, HubUnavailable."""
    return resolve_dataset(repository, token=settings.hub_token, endpoint=_endpoint(), seconds=HUB_SECONDS)


def _endpoint() -> str | None:
    """The hub that the workers ask as well."""
    return os.environ.get("HF_ENDPOINT") or None


def read_text_files(model: ModelRef, settings: Settings) -> TextFiles | None:
    """Blocks. None for a local model that only the workers see. Raises Unreadable, HubUnavailable."""
    if not model.id.startswith(LOCAL):
        return read_hub_text(
            model.id, revision=model.revision, token=settings.hub_token, endpoint=_endpoint(), seconds=HUB_SECONDS
        )
    directory = local_directory(model.id, settings.model_root)
    try:
        return read_local_text(directory) if directory is not None else None
    except OSError as error:
        raise Unreadable("invalid_model", f"the model's files cannot be read: {error.strerror}") from None


def look_at_rows(ref: ModelRef, model: Model, dataset: Dataset | None, settings: Settings, storage: Storage) -> Rows:
    """Blocks. Of a hub dataset nothing is known before a job fetches it."""
    if dataset is None:
        return unknown_rows(vision="vision_config" in model.headers.config)
    # What a hub model is at its commit never changes; a local one is looked at again.
    key = f"{ref.id} {model.commit} {dataset.id}" if model.commit else ""
    known = _judged.get(key)
    if known is not None:
        return known
    files = _text_files(ref, model, settings)
    if files is None:
        return _judge(TextFiles(model.headers.config, model.headers.processor), dataset, settings, storage)
    key = key or _digest(files, dataset)
    known = _judged.get(key)
    return known if known is not None else _keep(key, _judge(files, dataset, settings, storage))


_judged: dict[str, Rows] = {}
"""By what they were judged from, so that a job after its plan, and the next job, cost no counting."""
_keeping = threading.Lock()


def _keep(key: str, rows: Rows) -> Rows:
    with _keeping:
        while len(_judged) >= MOST_JUDGED:
            del _judged[next(iter(_judged))]
        _judged[key] = rows
    return rows


def _text_files(ref: ModelRef, model: Model, settings: Settings) -> TextFiles | None:
    """None where they cannot be had or used: then text is judged by its length."""
    try:
        return read_text_files(ModelRef(id=ref.id, revision=model.commit) if model.commit else ref, settings)
    except (Unreadable, HubUnavailable):
        return None


def _digest(files: TextFiles, dataset: Dataset) -> str:
    digest = hashlib.sha256(files.tokenizer or b"")
    said = [files.config, files.processor, files.template, files.beginning, files.multilingual, dataset.id]
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


def _judge(files: TextFiles, dataset: Dataset, settings: Settings, storage: Storage) -> Rows:
    vision = files.vision and dataset.images > 0
    if dataset.key is None or (dataset.format == "parquet" and dataset.bytes > SAMPLED_PARQUET):
        return unknown_rows(vision=vision, rows=dataset.rows)
    try:
        sample = _sample(dataset.key, dataset.format, settings, storage)
    except (ObjectMissing, OSError):
        return unknown_rows(vision=vision, rows=dataset.rows)
    return sampled_rows(sample, rows=dataset.rows, files=files)


def _sample(key: str, form: str, settings: Settings, storage: Storage) -> list[dict[str, Any]]:
    if form == "parquet":
        with draft(settings) as path:
            storage.fetch(key, path)
            return parsed_parquet(path, SAMPLED_ROWS)[0]
    with storage.open(key) as reader:
        return parsed_text(io.BytesIO(reader.read(SAMPLED_BYTES)), SAMPLED_ROWS)
