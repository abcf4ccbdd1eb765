"""What clients see of a dataset."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.contract.tables import Dataset
from app.datasets.contents import Figures, Row
from app.datasets.expiry import State, state_of
from app.moments import Moment
from app.paging import PageQuery


class DatasetQuery(PageQuery):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="Finds an upload of the same bytes."
    )


class DatasetChanges(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    expires_at: Moment | None = Field(description="A time to come; null: it stays until it is deleted.")


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
        description="An image part has the `index` of its image in `images`, an audio part that of its file in `audio`."
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


class FiguresView(BaseModel):
    """Of all rows. Characters, because what a token is depends on the model."""

    rows: int
    rows_with_images: int
    images: int
    image_formats: dict[str, int]
    image_pixels: SpreadView | None = Field(description="Width times height.")
    image_bytes: SpreadView | None
    characters: SpreadView | None = Field(description="Of text in one row.")
    roles: dict[str, int] = Field(description="Messages by role.")

    @classmethod
    def of(cls, figures: Figures) -> FiguresView:
        return cls.model_validate(figures, from_attributes=True)
