"""What clients see of a dataset."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.contract.tables import Dataset
from app.paging import PageQuery


class DatasetQuery(PageQuery):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="Finds an upload of the same bytes."
    )


class DatasetView(BaseModel):
    id: str = Field(examples=["ds_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["dataset"] = "dataset"
    name: str | None
    format: Literal["jsonl", "parquet"]
    bytes: int
    sha256: str
    rows: int
    images: int
    created_at: datetime

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
            created_at=dataset.created_at,
        )
