"""Is this uploaded file a calibration dataset? One pass over JSONL or Parquet, memory of one row (or one batch)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.datasets.rows import check_row, pointers
from app.settings import Settings

MOST_PROBLEMS = 100
MOST_LINE_BYTES = 64 << 20
PARQUET_MAGIC = b"PAR1"
PARQUET_BATCH = 16
PARQUET_EXPANSION = 8
"""Columns may unpack to this many times the upload's limit; a small file that becomes a huge one is an attack."""


@dataclass(frozen=True)
class Contents:
    """What a valid file holds."""

    format: str
    rows: int
    images: int


class InvalidRows(Exception):
    """``errors``: entries for a problem's ``errors``, at most the first hundred."""

    def __init__(self, message: str, errors: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.errors = errors


def validate(path: Path, settings: Settings) -> Contents:
    """Raises InvalidRows for a file that is no dataset or has a bad row."""
    is_parquet = _is_parquet(path)
    rows = rows_of(path, settings)
    images = count = 0
    errors: list[dict[str, Any]] = []
    for number, row in rows:
        count += 1
        if count > settings.max_dataset_rows:
            _refuse(f"more than {settings.max_dataset_rows} rows; calibration needs a few hundred", errors)
        if isinstance(row, UnreadableRow):
            errors.append({"row": number, "pointer": "", "detail": f"row {number}: {row}"})
        else:
            check = check_row(row, settings)
            images += check.images
            errors.extend(pointers(check.problems, number))
        if len(errors) >= MOST_PROBLEMS:
            errors = errors[:MOST_PROBLEMS]
            _refuse(f"{errors[0]['detail']} (and at least {MOST_PROBLEMS - 1} more; reading stopped here)", errors)
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        _refuse(f"{errors[0]['detail']}{more}", errors)
    if count == 0:
        _refuse("the file has no rows", errors)
    return Contents(format="parquet" if is_parquet else "jsonl", rows=count, images=images)


def rows_of(path: Path, settings: Settings) -> Iterator[tuple[int, Any]]:
    """``(number, row)``, one at a time; a row that cannot be parsed is an UnreadableRow. May raise InvalidRows."""
    return _parquet_rows(path, settings) if _is_parquet(path) else _jsonl_rows(path)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as reader:
        return reader.read(4) == PARQUET_MAGIC


class UnreadableRow(Exception):
    """A row that cannot be parsed at all."""


def _refuse(message: str, errors: list[dict[str, Any]]) -> None:
    raise InvalidRows(message, errors or [{"pointer": "/file", "detail": message}])


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """``(line number, row)``; empty lines are passed over."""
    with path.open("rb") as reader:
        number = 0
        while line := reader.readline(MOST_LINE_BYTES + 1):
            number += 1
            if len(line) > MOST_LINE_BYTES:
                yield number, UnreadableRow(f"longer than {MOST_LINE_BYTES >> 20} MiB")
                return
            if line.strip():
                yield number, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return UnreadableRow(f"not UTF-8 (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        return UnreadableRow(f"not JSON ({error.msg} at character {error.pos + 1} of {len(line)})")
    except RecursionError:
        return UnreadableRow("nested too deeply")
    except ValueError:  # an integer of more than 4300 digits
        return UnreadableRow("not JSON (a number too long to read)")


def _parquet_rows(path: Path, settings: Settings) -> Iterator[tuple[int, Any]]:
    """``(row number from 1, row)`` of the columns ``messages`` and ``images``."""
    import pyarrow as pa  # 40 MB of libraries that only these uploads need
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "messages" not in names:
                _refuse(f"no column 'messages'; its columns are {', '.join(names[:10])}", [])
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            unpacked = sum(group.total_byte_size for group in groups)
            if unpacked > PARQUET_EXPANSION * settings.max_dataset_bytes:
                _refuse(f"unpacks to {unpacked} bytes; too many", [])
            columns = [name for name in ("messages", "images") if name in names]
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        _refuse(f"not a readable Parquet file after row {number}: {reason}", [])
