"""How many tokens the calibration rows will make: judged by some of them.

By the model's own tokenizer where there is one, else by text lengths, which is a worse estimate; a plan's minutes are a
range for that reason.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from quant_experts.planning.counting import Counting
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.image_tokens import is_too_long
from quant_experts.planning.row_files import UnreadableFile, UnreadableRow, opened, raw_rows, unpacked
from quant_experts.planning.row_formats import COLUMNS, UnknownRow, canonical, of_columns, problem_of_video
from quant_experts.planning.row_tokens import Counts, RowCounting, TokenCounts
from quant_experts.planning.text_files import TextFiles
from quant_experts.planning.video_tokens import Clip
from quant_experts.spec.limits import MOST_ROWS

ASSUMED = {True: 800.0, False: 300.0}
"""Tokens of a row nothing is known about, of a model that takes images or not."""
MOST_BAD = 0.1
"""Share of the rows that may be of no use: a run skips them. With more, the file itself is suspect."""
ASSUMED_SPREAD, SAMPLED_SPREAD = 3.0, 1.5
PARQUET_BATCH = 16
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
"""The EXIF tag of a picture's orientation, and its values that swap width and height."""


@dataclass(frozen=True)
class Rows:
    """``rows``: of the dataset, None where nobody knows before the job runs. ``tokens``: of one row, ``spread`` the
    factor that it may be off either way. ``images``: per row, a video as one; ``image_tokens``: of a row, among its
    tokens. ``sampled``: rows that were looked at; ``largest_tokens``: of each of them its number and largest token id;
    ``too_long``: numbers of those with an image that is too long for the model's processor."""

    rows: int | None
    tokens: float
    spread: float
    images: float
    image_tokens: float = 0.0
    counted: bool = False
    """By the model's tokenizer."""
    sampled: int = 0
    largest_tokens: tuple[tuple[int, int], ...] = ()
    too_long: tuple[int, ...] = ()

    def used(self, samples: int) -> int:
        return min(samples, MOST_ROWS if self.rows is None else min(self.rows, MOST_ROWS))


def unknown_rows(*, vision: bool, rows: int | None = None) -> Rows:
    of_images = ASSUMED[True] - ASSUMED[False] if vision else 0.0
    return Rows(rows, ASSUMED[vision], ASSUMED_SPREAD, 1.0 if vision else 0.0, of_images)


def sampled_rows(
    sample: Sequence[Mapping[str, Any]],
    *,
    rows: int | None,
    files: TextFiles,
    seconds: int = 5,
    counting: Callable[..., Counts] = Counting,
) -> Rows:
    """From some canonical rows, counted by the model's tokenizer where ``files`` has one that can be used.

    ``seconds``: of the CPU, for ``counting``.
    """
    counts, images, too_long = _counted(sample, files, seconds, counting)
    largest = tuple((number, row.largest) for number, row in enumerate(counts.rows, start=1) if counts.counted)
    complete = partial(replace, sampled=len(sample), largest_tokens=largest, too_long=too_long)
    # One that is too long without its images is skipped; another takes its place.
    usable = [row for row in counts.rows if row.text < counts.limit]
    if not usable:
        return complete(unknown_rows(vision=files.vision, rows=rows))
    tokens = [min(row.total, counts.limit) for row in usable]
    of_images = [min(row.image, counts.limit - row.text) for row in usable]
    estimate = Rows(
        rows,
        statistics.fmean(tokens),
        _spread(tokens, counts, whole=rows == len(sample)),
        images / len(sample),
        statistics.fmean(of_images),
        counted=counts.counted,
    )
    return complete(estimate)


def _counted(
    sample: Sequence[Mapping[str, Any]], files: TextFiles, seconds: int, counting: Callable[..., Counts]
) -> tuple[TokenCounts, int, tuple[int, ...]]:
    """And how many images there are, and the rows with one that is too long. A tokenizer that cannot be used is
    the job's business to speak of."""
    images, too_long = 0, list[int]()
    with RowCounting(files, seconds=seconds, counting=counting) as row_counting:
        for number, row in enumerate(sample, start=1):
            sizes = list(_pictures(row)) if files.vision else []
            clips = list(_clips(row)) if files.vision else []
            messages = row.get("messages")
            row_counting.add(messages if isinstance(messages, list) else [], sizes, clips)
            images += len(sizes) + len(clips)
            if any(is_too_long(size, files.config) for size in (*sizes, *(clip.size for clip in clips))):
                too_long.append(number)
        try:
            return row_counting.finish(), images, tuple(too_long)
        except Unreadable:
            return _counted(sample, replace(files, tokenizer=None), seconds, counting)


def _spread(tokens: Sequence[int], counts: TokenCounts, *, whole: bool) -> float:
    """The factor by which the mean may be off, for the rows that were not looked at and what the template writes."""
    if not counts.counted:
        return SAMPLED_SPREAD
    varies = statistics.pstdev(tokens) / statistics.fmean(tokens) / math.sqrt(len(tokens))
    doubt = 0.03 if counts.turns_by != "assumed" else 0.15
    return min(ASSUMED_SPREAD, 1 + doubt + (0.0 if whole else 0.05 + 2 * varies))


def parsed_text(text: IO[bytes], most: int) -> list[dict[str, Any]]:
    """The first rows of a text, which may be cut off; one that cannot be read is left out."""
    rows: list[dict[str, Any]] = []
    with suppress(UnreadableFile), unpacked(text) as whole:
        for raw in raw_rows(whole):
            if len(rows) == most:
                break
            with suppress(UnreadableRow, UnknownRow):
                rows.append(canonical(raw.parsed()))
    return rows


def counted_text(path: Path, most: int) -> tuple[list[dict[str, Any]], int]:
    """The first rows of a text file, and how many it has."""
    with path.open("rb") as file:
        sample = parsed_text(file, most)
    with suppress(UnreadableFile), opened(path) as text:
        return sample, sum(1 for _ in raw_rows(text))
    return [], 0


def parsed_parquet(path: Path, most: int) -> tuple[list[dict[str, Any]], int | None]:
    """The first rows of a Parquet file, and how many it has. Nothing and None for one that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
                for row in batch.to_pylist():
                    with suppress(UnknownRow):
                        rows.append(canonical(of_columns(row)))
                if len(rows) >= most:
                    break
            return rows[:most], file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return [], None


def _pictures(row: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Widths and heights; of an image that cannot be read from outside, a guess."""
    own = (part["image"] for part in _parts(row, "image") if part.get("image") is not None)
    for source in (*(row.get("images") or ()), *own):
        yield _picture_size(source)


def _clips(row: Mapping[str, Any]) -> Iterator[Clip]:
    for part in _parts(row, "video"):
        if problem_of_video(part) is None:
            yield Clip(len(part["video"]), _picture_size(part["video"][0]), part.get("fps"))


def _parts(row: Mapping[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") == kind:
                yield part


def _picture_size(source: Any) -> tuple[int, int]:
    from PIL import Image

    try:
        if isinstance(source, dict):
            source = source.get("bytes")
        if isinstance(source, str):
            source = base64.b64decode(source.partition(",")[2])
        with Image.open(io.BytesIO(source), formats=("PNG", "JPEG", "WEBP")) as image:
            width, height = image.size
            is_sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
            return (height, width) if is_sideways else (width, height)
    except (OSError, ValueError, TypeError, binascii.Error, Image.DecompressionBombError):
        return 448, 448
