"""What clients send and see of API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from app.access.auth import Scope
from app.web.paging import PageQuery
from app.web.schemas import OfRow, Strict
from app.web.timestamps import Timestamp
from core.contract import patterns
from quant_experts.spec.choices import WHOLE

KeyName = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=patterns.LINE)]
Tenant = Annotated[str, StringConstraints(pattern=patterns.TENANT)]

OTHERS = "Only the bootstrap key may name one; else the caller's own."


class NewKey(Strict):
    name: KeyName
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope), description="At most those of the calling key.")
    expires_at: Timestamp | None = None
    tenant: Tenant | None = Field(default=None, description=OTHERS)


class KeyQuery(PageQuery):
    tenant: Tenant | None = Field(default=None, description=OTHERS)


class KeyRotation(Strict):
    keep_previous_s: Annotated[int, Field(strict=True, ge=0, le=30 * 24 * 3600), WHOLE] = Field(
        default=24 * 3600, description="Seconds for which the previous key stays valid."
    )


class KeyView(OfRow):
    id: str
    object: Literal["key"] = "key"
    name: str
    tenant: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To within a minute.")


class CreatedKey(KeyView):
    key: str = Field(description="The key itself. It is shown this once and not stored.")
