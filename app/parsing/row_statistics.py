"""Statistics over all rows of a dataset: counts, sizes, and the tokens that a model makes of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.parsing.contents import Row, all_rows
from core.settings import Settings
from quant_experts.planning.counting import Counting
from quant_experts.planning.row_tokens import MOST_CHARACTERS, Counts, RowCounting, TokenCounts, TurnsBy
from quant_experts.planning.text_files import TextFiles

NO_MODEL = (
    "an estimate: 3.6 characters to a token, 5 tokens around a message, images as Qwen2-VL's processor cuts them; name "
    "a model for its own numbers"
)


@dataclass(frozen=True)
class Spread:
    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        return cls(min(values), statistics.median(values), max(values)) if values else None


@dataclass(frozen=True)
class Total:
    least: float
    median: float
    most: float
    total: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Total | None:
        return cls(min(values), statistics.median(values), max(values), sum(values)) if values else None


@dataclass(frozen=True)
class TokenStatistics:
    """``rows``: rows whose tokens were counted; fewer than all for a very long dataset."""

    rows: int
    row: Total | None
    text: Total | None
    image: Total | None
    text_counted: bool
    images_exact: bool
    turns_by: TurnsBy
    limit: int
    rows_over: int
    note: str | None


@dataclass(frozen=True)
class DatasetStatistics:
    rows: int
    rows_text_only: int
    rows_with_images: int
    rows_with_audio: int
    images: int
    image_formats: dict[str, int]
    image_pixels: Spread | None
    image_bytes: Spread | None
    audio: int
    audio_seconds: Total | None
    characters: Spread | None
    roles: dict[str, int]
    tokens: TokenStatistics


def statistics_of(
    path: Path, settings: Settings, *, files: TextFiles | None = None, counting: Callable[..., Counts] = Counting
) -> DatasetStatistics:
    """One pass over the file. ``files``: of the model whose tokens ``counting`` counts.

    Raises Unreadable, which names the unusable file of the model.
    """
    formats, roles, kinds = Counter[str](), Counter[str](), Counter[str]()
    pixels, sizes, characters, seconds, audio = list[int](), list[int](), list[int](), list[float](), 0
    with RowCounting(files, counting=counting) as row_counting:
        for row in all_rows(path, settings):
            pictures = [image.header for at, image in enumerate(row.images) if at not in row.frames]
            row_counting.add(row.messages, [(each.width, each.height) for each in pictures], row.clips)
            characters.append(row.characters)
            kinds.update(_kinds(row))
            roles.update(str(message["role"]) for message in row.messages)
            for image in row.images:
                sizes.append(image.size)
                formats[image.header.format] += 1
                pixels.append(image.header.width * image.header.height)
            audio += len(row.audio)
            seconds += [sound.header.seconds for sound in row.audio if sound.header.seconds is not None]
        counts = row_counting.finish()
    return DatasetStatistics(
        rows=len(characters),
        rows_text_only=kinds["text"],
        rows_with_images=kinds["images"],
        rows_with_audio=kinds["audio"],
        images=len(sizes),
        image_formats=dict(formats),
        image_pixels=Spread.of(pixels),
        image_bytes=Spread.of(sizes),
        audio=audio,
        audio_seconds=Total.of(seconds),
        characters=Spread.of(characters),
        roles=dict(roles),
        tokens=_tokens(counts, files, rows=len(characters), images=len(sizes)),
    )


def _kinds(row: Row) -> list[str]:
    kinds = [*(["images"] if row.images else []), *(["audio"] if row.audio else [])]
    return kinds or ["text"]


def _tokens(counts: TokenCounts, files: TextFiles | None, *, rows: int, images: int) -> TokenStatistics:
    return TokenStatistics(
        rows=len(counts.rows),
        row=Total.of([row.total for row in counts.rows]),
        text=Total.of([row.text for row in counts.rows]),
        image=Total.of([row.image for row in counts.rows]) if images else None,
        text_counted=counts.counted,
        images_exact=counts.exact_images,
        turns_by=counts.turns_by,
        limit=counts.limit,
        rows_over=counts.over,
        note="; ".join(_notes(counts, files, rows=rows, images=images)) or None,
    )


def _notes(counts: TokenCounts, files: TextFiles | None, *, rows: int, images: int) -> list[str]:
    """Reasons why a job would get other numbers."""
    if files is None:
        return [NO_MODEL]
    notes = []
    if files.tokenizer is None:
        notes.append("the model has no tokenizer.json: text is estimated, 3.6 characters to a token")
    elif counts.turns_by == "assumed":
        notes.append("the model's chat template is of a style that is not known: 5 tokens are assumed around a message")
    if images and not files.vision:
        notes.append("the model takes no images: a job with these rows would fail")
    if len(counts.rows) < rows:
        millions = MOST_CHARACTERS // 10**6
        notes.append(f"only the first {len(counts.rows)} of {rows} rows were counted, {millions} million characters")
    return notes
