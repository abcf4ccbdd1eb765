"""Bringing what a job names to local disk, so that the runner needs neither network nor credentials.

Here are local models, uploaded rows, and the files of finished blocks. ``hub_download`` brings models and datasets from
the hub.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.contract.errors import FailureCode
from core.contract.local_model import NoLocalModel, local_directory, model_fingerprint
from core.storage import ObjectMissing
from quant_experts.files import file_digest
from quant_experts.spec.prefixes import LOCAL
from worker.supervisor.retrying_storage import RetryingStorage

logger = logging.getLogger(__name__)

SUFFIXES = {"jsonl": ".jsonl", "parquet": ".parquet"}


class FetchFailed(Exception):
    """Something that the job names cannot be brought here; ``code`` is what the job fails with."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def local_model(model_id: str, root: Path | None) -> Path:
    """``local/<directory>`` → the directory directly below ``root``, links followed, or FetchFailed."""
    try:
        directory = local_directory(model_id, root)
    except NoLocalModel as error:
        raise FetchFailed(FailureCode.MODEL_NOT_FOUND, f"model {model_id!r}: {error}") from None
    if obstacle := _closed_to_us(directory):
        raise FetchFailed(
            FailureCode.INVALID_MODEL,
            f"model {model_id!r}: {obstacle.relative_to(directory.parent)} cannot be read by the worker's user"
            f" {os.geteuid()}: chmod --recursive a+rX {model_id.removeprefix(LOCAL)}",
        )
    return directory


def _closed_to_us(directory: Path) -> Path | None:
    """What of the model this process may not read; ``save_pretrained`` leaves weights that only their owner may."""
    if not os.access(directory, os.R_OK | os.X_OK, effective_ids=True):
        return directory
    return next((each for each in directory.iterdir() if not os.access(each, os.R_OK, effective_ids=True)), None)


def check_fingerprint(model_id: str, directory: Path, fingerprint_of_plan: str | None) -> None:
    """Raises FetchFailed when the directory is not the one that was planned; a job without a plan has none."""
    if fingerprint_of_plan is None:
        return
    try:
        fingerprint = model_fingerprint(directory)
    except OSError as error:
        raise FetchFailed(FailureCode.INVALID_MODEL, f"model {model_id!r} cannot be read: {error}") from error
    if fingerprint != fingerprint_of_plan:
        raise FetchFailed(
            FailureCode.INVALID_MODEL, f"model {model_id!r}: its files have changed since the job was planned"
        )


def uploaded_rows(
    dataset_id: str, row: Mapping[str, Any] | None, storage: RetryingStorage, to: Path, *, name: str
) -> Path:
    """Bring the uploaded dataset ``row`` (``format key sha256``) into the directory ``to`` as a file called ``name``,
    digest checked."""
    if row is None:
        raise FetchFailed(FailureCode.DATASET_NOT_FOUND, f"dataset {dataset_id!r} does not exist any more")
    target = to / f"{name}{SUFFIXES.get(row['format'], '.jsonl')}"
    try:
        storage.fetch(row["key"], target)
    except ObjectMissing:
        raise FetchFailed(FailureCode.DATASET_NOT_FOUND, f"the bytes of dataset {dataset_id!r} are gone") from None
    if file_digest(target) != row["sha256"]:
        raise FetchFailed(
            FailureCode.DATASET_NOT_FOUND, f"dataset {dataset_id!r} is damaged: its sha256 does not match"
        )
    return target


def finished_blocks(files: list[dict[str, Any]], storage: RetryingStorage, to: Path) -> int:
    """Bring the files of finished blocks into the work directory; returns how many arrived whole.

    A file that is missing or damaged is left out with a line in the log: the library resumes from the longest prefix
    that it can verify, and computes the rest again.
    """
    count = 0
    for file in files:
        target = to / file["name"]
        if not target.resolve().is_relative_to(to.resolve()):
            raise ValueError(f"block file {file['name']!r} would lie outside the work directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            storage.fetch(file["key"], target)
        except ObjectMissing:
            logger.warning("block file %s is not in storage any more", file["key"])
            continue
        if target.stat().st_size != file["bytes"] or file_digest(target) != file["sha256"]:
            logger.warning("block file %s is damaged in storage", file["key"])
            target.unlink()
            continue
        count += 1
    return count
