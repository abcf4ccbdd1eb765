"""For how long a tenant wants things kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from app.web.schemas import Strict
from core.ledger.tables import Retention
from core.settings import Settings
from quant_experts.spec.choices import WHOLE

Days = Annotated[int, Field(strict=True, ge=1, le=36_500), WHOLE]
FIELDS = ("jobs_days", "events_days", "layers_days", "audit_days", "deliveries_days")


class RetentionChanges(Strict):
    """What is left out stays; null goes back to the service's default."""

    jobs_days: Days | None = Field(
        default=None,
        description="Finished jobs, with all that belongs to them, from their end. What an alias serves stays.",
    )
    events_days: Days | None = Field(default=None, description="Events of finished jobs but the last.")
    layers_days: Days | None = Field(default=None, description="Reports of finished jobs' blocks.")
    audit_days: Annotated[int, Field(strict=True, ge=30, le=36_500), WHOLE] | None = Field(
        default=None, description="Entries of the audit log."
    )
    deliveries_days: Days | None = Field(default=None, description="Finished deliveries of webhooks.")


class RetentionView(BaseModel):
    """In days; null: until somebody deletes it."""

    jobs_days: int | None
    events_days: int | None
    layers_days: int | None
    audit_days: int | None
    deliveries_days: int | None
    own: list[str] = Field(description="Fields that the tenant has set; the others are the service's defaults.")

    @classmethod
    def of(cls, row: Retention | None, settings: Settings) -> RetentionView:
        set_here = {name: getattr(row, name) for name in FIELDS if getattr(row, name, None) is not None}
        defaults = {name: getattr(settings, f"keep_{name}") for name in FIELDS}
        return cls(**{**defaults, **set_here}, own=sorted(set_here))
