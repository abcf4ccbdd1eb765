"""What clients send and see of pushes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.web.schemas import Strict
from core.contract import patterns
from core.contract.destination import PushStatus
from core.ledger.tables import Push
from quant_experts.spec.exports import ExportFormat

To = Annotated[str, StringConstraints(pattern=patterns.DESTINATION, max_length=700)]


class NewPush(Strict):
    to: To = Field(
        description="`hub:owner/name`: a model repository of the hub, written with the tenant's own token. "
        "`s3://bucket/prefix`: a folder of a bucket that the tenant has set a key for.",
        examples=["hub:team/model-w4a6", "s3://models-of-the-team/captions/w4a6"],
    )
    export: ExportFormat | None = Field(
        default=None, description="This export of the job, with the report; without it the checkpoint."
    )
    private: bool = Field(
        default=True,
        description="A repository that does not exist becomes private, and one that is public gets nothing. "
        "Means nothing for buckets.",
    )


class Amount(BaseModel):
    done: int
    total: int | None = Field(description="Null until it was taken.")


class PushResult(BaseModel):
    url: str
    commit: str | None = Field(default=None, description="Of a repository: the commit that has the files.")


class PushView(BaseModel):
    id: str = Field(examples=["push_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["push"] = "push"
    job_id: str
    to: str
    export: ExportFormat | None
    private: bool
    status: PushStatus = Field(description="`waiting`: the job has not succeeded yet.")
    attempts: int = Field(description="How often a keeper took it.")
    files: Amount = Field(description="Those that are at the destination.")
    bytes: Amount
    error: str | None = Field(description="Why the last attempt failed, or why it ended without success.")
    result: PushResult | None
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, push: Push) -> PushView:
        return cls(
            id=push.id,
            job_id=push.job_id,
            to=push.destination,
            export=push.export or None,
            private=push.private,
            status=PushStatus(push.status),
            attempts=push.attempts,
            files=Amount(done=push.files_done, total=push.files_total),
            bytes=Amount(done=push.bytes_done, total=push.bytes_total),
            error=push.error,
            result=None if push.result is None else PushResult.model_validate(push.result),
            next_attempt_at=push.due_at if push.status == PushStatus.QUEUED else None,
            created_at=push.created_at,
            finished_at=push.finished_at,
        )
