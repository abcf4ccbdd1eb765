"""What a plan reads: a model's headers and a few of the rows, all of it bounded in bytes and time."""

from __future__ import annotations

import functools
import io
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from app.contract.local_model import model_fingerprint
from app.contract.spec import ModelRef
from app.contract.tables import Dataset
from app.settings import Settings
from app.storage import ObjectMissing, Storage
from planning.errors import Unreadable
from planning.headers import ModelHeaders
from planning.hub import read_hub, resolve_dataset
from planning.local import read_local
from planning.rows import Rows, parsed_lines, sampled_rows, unknown_rows

LOCAL, UPLOADED = "local/", "ds_"
HUB_SECONDS = 20.0
SAMPLED_ROWS = 48
SAMPLED_BYTES = 8 << 20
AT_ONCE = 4
"""Plans that read at the same time: a slow hub may not take every thread of the API."""

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """``commit``: of a hub model; ``fingerprint``: of a local one."""

    headers: ModelHeaders
    commit: str | None = None
    fingerprint: str | None = None


async def aside(work: Callable[[], T]) -> T:
    """Run blocking ``work`` in a thread, a few at a time."""
    return await anyio.to_thread.run_sync(work, limiter=_limiter())


@functools.cache
def _limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(AT_ONCE)


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


def look_at_rows(dataset: Dataset | None, headers: ModelHeaders, storage: Storage) -> Rows:
    """Blocks. Of a hub dataset nothing is known before a job fetches it."""
    vision = "vision_config" in headers.config
    if dataset is None:
        return unknown_rows(vision=vision)
    if dataset.key is None or dataset.format != "jsonl":
        return unknown_rows(vision=vision and dataset.images > 0, rows=dataset.rows)
    try:
        with storage.open(dataset.key) as reader:
            lines = io.BytesIO(reader.read(SAMPLED_BYTES))
    except (ObjectMissing, OSError):
        return unknown_rows(vision=vision and dataset.images > 0, rows=dataset.rows)
    sample = parsed_lines(itertools.islice(lines, SAMPLED_ROWS), SAMPLED_ROWS)
    return sampled_rows(sample, rows=dataset.rows, config=headers.config, processor=headers.processor)
