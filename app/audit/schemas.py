"""What clients see of the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from app.web.paging import PageQuery
from app.web.schemas import OfRow
from core.contract import patterns

Word = Annotated[str, StringConstraints(max_length=80, pattern=patterns.WORD)]


class AuditQuery(PageQuery):
    action: Word | None = Field(default=None, examples=["key.created"])
    object_id: Word | None = None
    key_id: Word | None = None


class AuditView(OfRow):
    id: str = Field(examples=["aud_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["audit_entry"] = "audit_entry"
    created_at: datetime
    key_id: str = Field(description="Who: a key, `bootstrap`, or `keeper` for what its owner let expire.")
    action: str = Field(examples=["job.created"])
    object_id: str
    request_id: str = Field(description="`X-Request-Id` of the request that did it.")
    details: dict[str, Any]
