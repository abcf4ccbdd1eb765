"""Variants of a calibration row with other pixels: its images swapped for another row's, or blanked.

A variant has the token layout of its row, so that the model's answers can be compared position by position.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageStat

from quant_experts.calibration.images import decode
from quant_experts.calibration.rows import Row

MOST_ROWS = 8
"""Most held-out rows with variants. Each variant passes the walk in full precision and quantized."""

Change = Literal["swapped", "blanked"]


@dataclass(frozen=True)
class Variant:
    """``original``: index of the captured row that this one was made from."""

    original: int
    change: Change
    row: Row


def image_variants(rows: Sequence[tuple[int, Row]]) -> Iterator[Variant]:
    """Variants of ``rows``: (index of the captured row, row), held out, with images.

    Swapped images come from the next row with other images; the first row follows the last. A row without such a next
    row has no swapped variant. A row whose images are blank already has no blanked one.
    """
    for place, (index, row) in enumerate(rows):
        donors = (donor for _, donor in [*rows[place + 1 :], *rows[:place]])
        foreign = next((images for donor in donors if (images := _swapped(row, donor)) is not None), None)
        if foreign is not None:
            yield Variant(index, "swapped", replace(row, images=foreign))
        own = _pixels(row)
        blank = _if_different(own, [_blank(image) for image in own])
        if blank is not None:
            yield Variant(index, "blanked", replace(row, images=blank))


def _swapped(row: Row, donor: Row) -> tuple[bytes, ...] | None:
    """The donor's images, in turn, at the sizes of the row's; None when that changes no pixel."""
    own, others = _pixels(row), _pixels(donor)
    same_size = [others[i % len(others)].resize(image.size, Image.Resampling.BICUBIC) for i, image in enumerate(own)]
    return _if_different(own, same_size)


def _blank(image: Image.Image) -> Image.Image:
    """One grey, as bright as the image on average."""
    grey = round(ImageStat.Stat(image.convert("L")).mean[0])
    return Image.new("RGB", image.size, (grey, grey, grey))


def _if_different(own: Sequence[Image.Image], others: Sequence[Image.Image]) -> tuple[bytes, ...] | None:
    if all(a.tobytes() == b.tobytes() for a, b in zip(own, others, strict=True)):
        return None
    return tuple(_encoded(image) for image in others)


def _pixels(row: Row) -> list[Image.Image]:
    return [decode(data, f"calibration row {row.number}, image {i}") for i, data in enumerate(row.images, start=1)]


def _encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    return out.getvalue()
