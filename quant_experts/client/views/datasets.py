"""Datasets: their uploads, rows and statistics."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from quant_experts.client.views.base import View


class DatasetView(View):
    id: str
    object: Literal["dataset"] = "dataset"
    name: str | None
    format: str
    bytes: int
    sha256: str
    rows: int
    images: int
    status: str = "ready"
    """Only a ``ready`` one can be used."""
    expires_at: datetime | None = None
    created_at: datetime


class PartView(View):
    number: int
    bytes: int
    sha256: str


class UploadView(View):
    """A large file on its way."""

    id: str
    parts: list[PartView]
    most_parts: int = 1000
    most_part_bytes: int = 64 << 20
    most_bytes: int
    expires_at: datetime


class ImageView(View):
    format: str
    width: int
    height: int
    bytes: int
    url: str


class AudioView(View):
    format: str
    channels: int
    rate: int
    """Samples per second."""
    seconds: float | None
    bytes: int
    url: str


class RowView(View):
    """A row of a dataset; an image or audio part of its messages has the ``index`` of its file."""

    number: int
    messages: list[dict[str, Any]]
    images: list[ImageView]
    audio: list[AudioView] = Field(default_factory=list)


class RowPage(View):
    data: list[RowView]
    has_more: bool
    next_after: int


class SpreadView(View):
    least: float
    median: float
    most: float


class TotalView(SpreadView):
    total: float


class TokensView(View):
    """Tokens of a dataset's rows. ``model``: whose they are, None for an estimate; ``text_by``, ``images_by``,
    ``turns_by``: how text, images and what the chat template writes around messages are known."""

    model: str | None
    commit: str | None = None
    rows: int
    row: TotalView | None
    text: TotalView | None
    image: TotalView | None
    text_by: str
    images_by: str
    turns_by: str
    limit: int
    rows_over: int
    """Longer than ``limit``, which is what a job takes of one row."""
    note: str | None


class FiguresView(View):
    """Figures of all rows of a dataset."""

    rows: int
    rows_with_images: int
    rows_text_only: int = 0
    rows_with_audio: int = 0
    audio: int = 0
    audio_seconds: TotalView | None = None
    tokens: TokensView | None = None
    """None of a service that does not say."""
    images: int
    image_formats: dict[str, int]
    image_pixels: SpreadView | None
    image_bytes: SpreadView | None
    characters: SpreadView | None
    roles: dict[str, int]
