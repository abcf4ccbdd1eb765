"""Validate an uploaded file as a calibration dataset: one pass over text or Parquet, one row or batch in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.parsing.row_checks import check_row
from core.settings import Settings
from quant_experts.planning.complaints import Complaints
from quant_experts.planning.row_files import UnreadableFile, UnreadableRow, opened, raw_rows, starts_with
from quant_experts.planning.row_formats import COLUMNS, TURNS, UnknownRow, of_columns, what_it_is

MOST_ROW_BYTES = 64 << 20
PARQUET_MAGIC = b"PAR1"
PARQUET_BATCH = 16
EXPANSION = 8
"""Columns and gzip may expand to this many times the upload's limit. More is a decompression bomb."""


@dataclass(frozen=True)
class Contents:
    """The contents of a valid file."""

    format: str
    rows: int
    images: int


class InvalidRows(Exception):
    """``errors``: entries for a problem's ``errors``, one for each kind of error."""

    def __init__(self, message: str, errors: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.errors = errors


def validate(path: Path, settings: Settings) -> Contents:
    """Raises InvalidRows for a file that is no dataset or has an invalid row."""
    images = count = 0
    complaints = Complaints()
    for number, row in rows_of(path, settings):
        count += 1
        if count > settings.max_dataset_rows:
            _refuse(f"more than {settings.max_dataset_rows} rows; calibration needs a few hundred")
        if isinstance(row, UnreadableRow | UnknownRow):
            complaints.add(number, getattr(row, "pointer", ""), str(row))
            continue
        check = check_row(row, settings)
        images += check.images
        for problem in check.problems:
            complaints.add(number, problem.pointer, problem.detail)
    if complaints:
        raise InvalidRows(complaints.summary(), complaints.errors())
    if count == 0:
        _refuse("the file has no rows")
    return Contents(format="parquet" if starts_with(path, PARQUET_MAGIC) else "jsonl", rows=count, images=images)


def rows_of(path: Path, settings: Settings) -> Iterator[tuple[int, Any]]:
    """``(number, row)``, one at a time; one that cannot be parsed is an UnreadableRow or UnknownRow.
    May raise InvalidRows."""
    return _parquet_rows(path, settings) if starts_with(path, PARQUET_MAGIC) else _text_rows(path, settings)


def _refuse(message: str) -> None:
    raise InvalidRows(message, [{"pointer": "/file", "detail": message}])


def _text_rows(path: Path, settings: Settings) -> Iterator[tuple[int, Any]]:
    most = EXPANSION * settings.max_dataset_bytes
    try:
        with opened(path) as text:
            for raw in raw_rows(text, most_row=MOST_ROW_BYTES, most=most):
                try:
                    yield raw.number, raw.parsed()
                except UnreadableRow as error:
                    yield raw.number, error
    except UnreadableFile as error:
        _refuse(str(error))


def _parquet_rows(path: Path, settings: Settings) -> Iterator[tuple[int, Any]]:
    """``(row number from 1, row)`` of the columns that are read."""
    import pyarrow as pa  # 40 MB, needed only for these uploads
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if not set(TURNS) & set(names):
                _refuse(f"no column 'messages'; {what_it_is(names)}")
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            size = sum(group.total_byte_size for group in groups)
            if size > EXPANSION * settings.max_dataset_bytes:
                _refuse(f"unpacks to {size} bytes; too many")
            columns = [name for name in COLUMNS if name in names]
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _of_columns(row)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        _refuse(f"not a readable Parquet file after row {number}: {reason}")


def _of_columns(columns: dict[str, Any]) -> Any:
    try:
        return of_columns(columns)
    except UnknownRow as error:
        return error
