"""Choose the rows of a run: open a file or dataset directory, count its rows, draw a seeded choice, read rows one by
one.

Text files are indexed by offsets, and Parquet is read group by group, so that a file of images need not fit in memory.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from quant_experts.calibration.rows import BadRow, Row, parse_row
from quant_experts.errors import InvalidCalibration, one_line
from quant_experts.planning.row_files import GZIP, RawRow, UnreadableFile, UnreadableRow, opened, raw_rows, starts_with
from quant_experts.planning.row_formats import COLUMNS, TURNS, WANTED, UnknownRow, kind_of, of_columns, what_it_is
from quant_experts.planning.rows import MOST_BAD
from quant_experts.seeding import generator
from quant_experts.spec.limits import MOST_ROWS

FEWEST_HELD_OUT = 2

TEXT = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")


class RowFile(Protocol):
    """Rows by position, 0 to ``len - 1``. ``has_more``: the file goes on after the MOST_ROWS rows that are read."""

    @property
    def has_more(self) -> bool: ...

    def __len__(self) -> int: ...

    def read(self, positions: Sequence[int]) -> Iterator[Row | BadRow]:
        """The rows at ``positions``, which are sorted; one that cannot be used is a BadRow. Raises InvalidCalibration
        for a file that cannot be read."""


@dataclass(frozen=True)
class Choice:
    """Positions of the rows that a run uses; ``held_out`` and ``fit`` are sorted.

    ``held_out``: never used to fit. ``fit``: the others. ``reserve``: replace skipped rows, in this order.
    """

    held_out: tuple[int, ...]
    fit: tuple[int, ...]
    reserve: tuple[int, ...]

    @property
    def total(self) -> int:
        """Number of rows that the run uses when there are enough that can be used."""
        return len(self.held_out) + len(self.fit)


def open_rows(path: Path, *, split: str = "train", follow_links: bool = True) -> RowFile:
    """A JSONL, JSON or Parquet file, or a directory as Hugging Face datasets have it. ``follow_links``: an image may be
    a link to a file elsewhere.

    Raises InvalidCalibration when there is nothing to read, or a text file holds something else than rows.
    """
    if path.is_dir():
        files = _dataset_files(path, split)
        parts = [open_rows(file, split=split, follow_links=follow_links) for file in files]
        return parts[0] if len(parts) == 1 else _Concatenated(parts)
    if not path.is_file():
        raise InvalidCalibration(f"calibration file {path} does not exist")
    if path.stat().st_size == 0:
        raise InvalidCalibration(f"{path.name} is empty; expected one JSON row per line, or Parquet")
    with path.open("rb") as reader:
        magic = reader.read(4)
    if magic == b"PAR1" or path.suffix == ".parquet":
        return _ParquetRows(path, follow_links)
    try:
        return _TextRows(path, follow_links)
    except UnreadableFile as error:
        raise InvalidCalibration(f"{path.name}: {error}") from error


def choose(rows: RowFile, *, samples: int, holdout: float, seed: int) -> Choice:
    """A seeded choice of ``samples`` rows, or of all if there are fewer; a share ``holdout``, at least 2, is held out.

    Raises InvalidCalibration when nothing would be left to fit.
    """
    order = torch.randperm(len(rows), generator=generator(seed, "calibration", "choice")).tolist()
    chosen_rows, reserve = order[:samples], order[samples:]
    held_out = max(FEWEST_HELD_OUT, round(holdout * len(chosen_rows)))
    if len(chosen_rows) <= held_out:
        raise InvalidCalibration(
            f"{len(chosen_rows)} calibration rows, of which {held_out} are held out to measure: nothing left to fit; "
            f"give at least {FEWEST_HELD_OUT + 1} rows"
        )
    return Choice(tuple(sorted(chosen_rows[:held_out])), tuple(sorted(chosen_rows[held_out:])), tuple(reserve))


def rows_fingerprint(rows: RowFile, choice: Choice) -> str:
    """A digest of the chosen rows, images included, and of how many there were to choose from."""
    digest = hashlib.sha256(f"{len(rows)}".encode())
    for row in rows.read(sorted(choice.held_out + choice.fit)):
        digest.update(row.digest.encode())
    return digest.hexdigest()


def _dataset_files(directory: Path, split: str) -> list[Path]:
    candidates = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file()
        and path.name.endswith((".parquet", *TEXT))
        and not path.name.startswith((".", "dataset_info"))
    )
    files = [
        path for path in candidates if path.name.startswith((f"{split}-", f"{split}.")) or path.parent.name == split
    ]
    if files:
        return files
    if len(candidates) == 1:
        return candidates
    examples = ", ".join(path.relative_to(directory).as_posix() for path in candidates[:5]) or "nothing"
    raise InvalidCalibration(f"{directory.name}: no Parquet or JSONL file of split {split!r}; found {examples}")


class _TextRows:
    """Rows of a text file, read in place. Rows of a packed file are read from a temporary copy."""

    def __init__(self, path: Path, follow_links: bool) -> None:
        """Parses every row once, so that a broken file is reported before anything runs. Raises InvalidCalibration for
        more than a tenth of broken rows."""
        self._path, self._follow_links = path, follow_links
        self._copy: IO[bytes] | None = tempfile.TemporaryFile() if starts_with(path, GZIP) else None  # noqa: SIM115 -- kept
        self._places: list[tuple[int, int, int]] = []  # (row number, first byte, bytes)
        self.has_more = False
        with opened(path) as text:
            bad: list[str] = []
            for row in raw_rows(text):
                if len(self._places) == MOST_ROWS:
                    self.has_more = True
                    break
                error = _parsed(row)
                if isinstance(error, BadRow):
                    bad.append(error.reason)
                if not isinstance(row.text, bytes):
                    break  # the file cannot be cut into rows any more
                start = row.start if self._copy is None else self._copy.tell()
                if self._copy is not None:
                    self._copy.write(row.text)
                self._places.append((row.number, start, len(row.text)))
        refuse_too_many_bad(bad, len(self._places))
        if not self._places:
            raise InvalidCalibration(f"{path.name} holds no row; expected one JSON row per line, or a list of them")

    def __len__(self) -> int:
        return len(self._places)

    def read(self, positions: Sequence[int]) -> Iterator[Row | BadRow]:
        with ExitStack() as stack:
            reader = self._copy or stack.enter_context(self._path.open("rb"))
            for position in positions:
                number, start, size = self._places[position]
                reader.seek(start)
                row = _parsed(RawRow(number, start, reader.read(size)))
                yield row if isinstance(row, BadRow) else _row(number, row, self._path.parent, self._follow_links)


def _parsed(row: RawRow) -> dict[str, Any] | BadRow:
    try:
        content = row.parsed()
    except UnreadableRow as error:
        return BadRow(row.number, f"calibration row {row.number}: {error}")
    if not isinstance(content, dict):
        return BadRow(row.number, f"calibration row {row.number}: a {kind_of(content)}; {WANTED}")
    return content


def _row(number: int, content: dict[str, Any], base: Path, follow_links: bool) -> Row | BadRow:
    try:
        return parse_row(number, content, base, follow_links=follow_links)
    except InvalidCalibration as error:
        return BadRow(number, str(error))


def refuse_too_many_bad(reasons: Sequence[str], rows: int) -> None:
    """``rows``: of which so many are bad. Raises InvalidCalibration that begins with the first reason."""
    if len(reasons) > MOST_BAD * rows:
        more = (
            f"; {len(reasons)} of {rows} rows cannot be used, at most {MOST_BAD:.0%} may be" if len(reasons) > 1 else ""
        )
        raise InvalidCalibration(f"{reasons[0]}{more}")


class _ParquetRows:
    BATCH = 16

    def __init__(self, path: Path, follow_links: bool) -> None:
        self._path, self._follow_links = path, follow_links
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            raise InvalidCalibration(f"{path.name} is not a Parquet file, or truncated ({one_line(error)})") from error
        if not set(TURNS) & set(names):
            raise InvalidCalibration(f"{path.name} has no column messages; {what_it_is(names)}")
        self._columns = [name for name in COLUMNS if name in names]
        self._starts = [0, *itertools.accumulate(sizes)]
        if self._starts[-1] == 0:
            raise InvalidCalibration(f"{path.name} holds no row")

    def __len__(self) -> int:
        return min(int(self._starts[-1]), MOST_ROWS)

    @property
    def has_more(self) -> bool:
        return int(self._starts[-1]) > MOST_ROWS

    def read(self, positions: Sequence[int]) -> Iterator[Row | BadRow]:
        wanted_positions = set(positions)
        groups = sorted({bisect.bisect_right(self._starts, position) - 1 for position in positions})
        try:
            with pq.ParquetFile(self._path) as file:
                for group in groups:
                    position = self._starts[group]
                    for batch in file.iter_batches(self.BATCH, row_groups=[group], columns=self._columns):
                        for index in range(batch.num_rows):
                            if position in wanted_positions:
                                yield self._row(position + 1, batch, index)
                            position += 1
        except (pa.ArrowException, OSError) as error:
            raise InvalidCalibration(f"{self._path.name} cannot be read ({one_line(error)})") from error

    def _row(self, number: int, batch: Any, index: int) -> Row | BadRow:
        try:
            row = of_columns({name: batch.column(name)[index].as_py() for name in batch.schema.names})
        except UnknownRow as error:
            return BadRow(number, f"calibration row {number}: {error}")
        return _row(number, row, self._path.parent, self._follow_links)


class _Concatenated:
    """Several files of one split, in the order of their names."""

    def __init__(self, parts: list[RowFile]) -> None:
        self._parts = parts
        self._starts = [0, *itertools.accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return min(self._starts[-1], MOST_ROWS)

    @property
    def has_more(self) -> bool:
        return self._starts[-1] > MOST_ROWS or any(part.has_more for part in self._parts)

    def read(self, positions: Sequence[int]) -> Iterator[Row | BadRow]:
        for part, start, end in zip(self._parts, self._starts, self._starts[1:], strict=False):
            mine = [position - start for position in positions if start <= position < end]
            for position, row in zip(mine, part.read(mine), strict=True):
                yield replace(row, number=start + position + 1)
