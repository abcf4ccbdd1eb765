"""What clients see of an upload in parts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.uploads.parts import Part
from app.web.schemas import OfRow, Strict
from app.web.timestamps import Timestamp
from core.contract import patterns
from core.contract.uploads import expires_at

MOST_PARTS = 1000
MOST_PART_BYTES = 64 << 20


class NewUpload(Strict):
    name: Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=patterns.LINE)] | None = None


class CompleteUpload(Strict):
    sha256: Annotated[str, StringConstraints(pattern=patterns.SHA256)] = Field(description="Digest of the whole file.")
    expires_at: Timestamp | None = Field(default=None, description="When the dataset expires.")


class PartView(OfRow):
    number: int
    bytes: int
    sha256: str


class UploadView(BaseModel):
    id: str = Field(examples=["up_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["upload"] = "upload"
    name: str | None
    parts: list[PartView] = Field(description="Those that have arrived; send the others to go on.")
    bytes: int = Field(description="Bytes of all parts that have arrived.")
    most_parts: int = MOST_PARTS
    most_part_bytes: int = MOST_PART_BYTES
    most_bytes: int = Field(description="Bytes that the whole file may have.")
    expires_at: datetime

    @classmethod
    def of(cls, upload_id: str, name: str | None, parts: Sequence[Part], *, most_bytes: int) -> UploadView:
        return cls(
            id=upload_id,
            name=name,
            parts=[PartView.of(part) for part in parts],
            bytes=sum(part.bytes for part in parts),
            most_bytes=most_bytes,
            expires_at=expires_at(upload_id),
        )
