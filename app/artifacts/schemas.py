"""What clients see of the files of a finished job."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import quote

from pydantic import BaseModel

from core.ledger.tables import Artifact


class ArtifactView(BaseModel):
    name: str
    bytes: int
    sha256: str
    media_type: str
    url: str
    created_at: datetime

    @classmethod
    def of(cls, artifact: Artifact) -> ArtifactView:
        return cls(
            name=artifact.name,
            bytes=artifact.bytes,
            sha256=artifact.sha256,
            media_type=artifact.media_type,
            url=f"/v1/jobs/{artifact.job_id}/artifacts/{quote(artifact.name)}",
            created_at=artifact.created_at,
        )


class ArtifactList(BaseModel):
    data: list[ArtifactView]
