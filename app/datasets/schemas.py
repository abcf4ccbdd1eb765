"""What clients see of a dataset."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.datasets.expiry import State, state_of
from app.parsing.contents import Row
from app.parsing.row_statistics import DatasetStatistics, TokenStatistics
from app.web.paging import PageQuery
from app.web.schemas import Strict
from app.web.timestamps import Timestamp
from core.contract import patterns
from core.ledger.tables import Dataset

RowNumber = Annotated[int, PathParameter(ge=1, le=10**9)]
MediaIndex = Annotated[int, PathParameter(ge=0, le=10**6)]


class DatasetQuery(PageQuery):
    sha256: Annotated[str, StringConstraints(pattern=patterns.SHA256)] | None = Field(
        default=None, description="Finds an upload of the same bytes."
    )


class DatasetChanges(Strict):
    expires_at: Timestamp | None = Field(description="A time to come; null: it stays until it is deleted.")


class DatasetView(BaseModel):
    id: str = Field(examples=["ds_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["dataset"] = "dataset"
    name: str | None
    format: Literal["jsonl", "parquet"]
    bytes: int
    sha256: str
    rows: int
    images: int
    status: State = Field(description="Only a `ready` one can be used.")
    created_at: datetime
    expires_at: datetime | None

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetView:
        return cls(
            id=dataset.id,
            name=dataset.name,
            format="parquet" if dataset.format == "parquet" else "jsonl",
            bytes=dataset.bytes,
            sha256=dataset.sha256,
            rows=dataset.rows,
            images=dataset.images,
            status=state_of(dataset),
            created_at=dataset.created_at,
            expires_at=dataset.expires_at,
        )


class ImageView(BaseModel):
    format: Literal["PNG", "JPEG", "WEBP"]
    width: int
    height: int
    bytes: int
    url: str = Field(description="The image as it was uploaded.")


class AudioView(BaseModel):
    format: Literal["WAV"]
    channels: int
    rate: int = Field(description="Samples per second.")
    seconds: float | None = Field(description="Null where the file does not say it.")
    bytes: int
    url: str = Field(description="The file as it was uploaded.")


class RowView(BaseModel):
    number: int = Field(description="Line of a JSONL file, row of a Parquet file; counted from 1.")
    messages: list[dict[str, Any]] = Field(
        description="An image part has the `index` of its image in `images`, a video part the `indices` of its frames "
        "there, an audio part the `index` of its file in `audio`."
    )
    images: list[ImageView]
    audio: list[AudioView]

    @classmethod
    def of(cls, dataset_id: str, row: Row) -> RowView:
        base = f"/v1/datasets/{dataset_id}/rows/{row.number}"
        images = [
            ImageView.model_validate({**vars(image.header), "bytes": image.size, "url": f"{base}/images/{index}"})
            for index, image in enumerate(row.images)
        ]
        audio = [
            AudioView.model_validate(
                {**vars(one.header), "format": "WAV", "bytes": one.size, "url": f"{base}/audio/{index}"}
            )
            for index, one in enumerate(row.audio)
        ]
        return cls(number=row.number, messages=row.messages, images=images, audio=audio)


class RowPage(BaseModel):
    data: list[RowView]
    has_more: bool
    next_after: int = Field(description="Pass as `after` for the rows that come next.")


class SpreadView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    least: float
    median: float
    most: float


class TotalView(SpreadView):
    total: float


class TokensView(BaseModel):
    """Tokens of the rows as a job of the model would have them, before images are made smaller to fit."""

    model: str | None = Field(
        description="The model whose tokens were counted; null: estimated for no particular model."
    )
    commit: str | None = Field(description="The commit of a hub model that was read.")
    rows: int = Field(description="Rows that were counted: all, unless they hold very much text.")
    row: TotalView | None = Field(description="Tokens of one row, text and images together.")
    text: TotalView | None = Field(
        description="Tokens of one row's texts and of what the chat template writes around them."
    )
    image: TotalView | None = Field(description="Tokens of one row's images together; null where no row has one.")
    text_by: Literal["tokenizer", "estimate"] = Field(
        description="The model's own tokenizer.json, or 3.6 characters to a token."
    )
    images_by: Literal["processor", "estimate"] = Field(
        description="The exact arithmetic of the model's image processor, or that of Qwen2-VL."
    )
    turns_by: Literal["template", "assumed", "none"] = Field(
        description="What the chat template writes around each message: its style is known, and is counted; or it is "
        "not, and 5 tokens are assumed for a message; or the model has no template."
    )
    limit: int = Field(description="Tokens that a job takes of one row.")
    rows_over: int = Field(description="Longer than `limit`: their images are made smaller, or they are passed over.")
    note: str | None = Field(description="What keeps the numbers from being exact, or the rows from being used.")

    @classmethod
    def of(cls, figures: TokenStatistics, *, model: str | None, commit: str | None) -> TokensView:
        return cls.model_validate(
            {
                **{name: value for name, value in vars(figures).items() if name in cls.model_fields},
                "model": model,
                "commit": commit,
                "text_by": "tokenizer" if figures.text_counted else "estimate",
                "images_by": "processor" if figures.images_exact else "estimate",
            },
            from_attributes=True,
        )


class FiguresView(BaseModel):
    """Figures of all rows."""

    rows: int
    rows_text_only: int
    rows_with_images: int
    rows_with_audio: int = Field(description="A row may have images and audio.")
    images: int
    image_formats: dict[str, int]
    image_pixels: SpreadView | None = Field(description="Width times height.")
    image_bytes: SpreadView | None
    audio: int = Field(description="Files.")
    audio_seconds: TotalView | None = Field(
        description="Seconds of one audio file, of those that say how long they are."
    )
    characters: SpreadView | None = Field(description="Characters of text in one row.")
    roles: dict[str, int] = Field(description="Messages by role.")
    tokens: TokensView

    @classmethod
    def of(cls, figures: DatasetStatistics, *, model: str | None = None, commit: str | None = None) -> FiguresView:
        tokens = TokensView.of(figures.tokens, model=model, commit=commit)
        return cls.model_validate({**vars(figures), "tokens": tokens}, from_attributes=True)
