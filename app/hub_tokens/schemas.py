"""What clients send and see of a tenant's token for the Hugging Face Hub. The token itself is never shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.web.schemas import Strict
from core.contract import patterns
from core.ledger.tables import HubToken
from core.settings import Settings


class NewHubToken(Strict):
    token: Annotated[str, StringConstraints(pattern=patterns.HUB_TOKEN)] = Field(
        repr=False,
        description="A token of the Hugging Face Hub with read access: `hf_…`.",
        json_schema_extra={"writeOnly": True},
    )


class HubTokenView(BaseModel):
    """Which token the tenant's models and datasets are fetched with."""

    source: Literal["tenant", "service", "none"] = Field(
        description="`tenant`: its own. `service`: the operator's, which all tenants without one share."
    )
    set_at: datetime | None = Field(description="When the tenant's own was set; null without one.")

    @classmethod
    def of(cls, row: HubToken | None, settings: Settings) -> HubTokenView:
        if row is not None:
            return cls(source="tenant", set_at=row.set_at)
        return cls(source="service" if settings.hub_token else "none", set_at=None)
