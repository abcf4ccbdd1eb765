"""What belongs to a tenant: usage, keys, retention, hub token."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from quant_experts.client.views.base import View


class Period(View):
    """A day or month in UTC that had any use."""

    start: datetime
    jobs_created: int = 0
    jobs_succeeded: int = 0
    jobs_failed: int = 0
    jobs_cancelled: int = 0
    worker_seconds: float = 0.0
    gpu_seconds: float = 0.0
    bytes_added: int = 0


class Stored(View):
    """Bytes, now."""

    datasets: int
    artifacts: int
    uploads: int
    """Parts that have not become datasets."""
    total: int


class Unfinished(View):
    """Jobs, now."""

    queued: int
    running: int


class Limits(View):
    """What the tenant may have; None: no limit."""

    stored_bytes: int
    queued_jobs: int
    running_jobs: int | None
    requests_per_minute: int | None
    """Requests of one key."""


class Usage(View):
    """``unfinished`` and ``limits`` are None where an older service does not say them."""

    since: datetime
    until: datetime
    by: str
    periods: list[Period]
    stored: Stored
    unfinished: Unfinished | None = None
    limits: Limits | None = None


class KeyView(View):
    id: str
    object: Literal["key"] = "key"
    name: str
    tenant: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class CreatedKey(KeyView):
    key: str
    """The key itself, which the service shows this once."""


class RetentionView(View):
    """In days; None: until somebody deletes it."""

    jobs_days: int | None
    events_days: int | None
    layers_days: int | None
    audit_days: int | None
    deliveries_days: int | None
    own: list[str]
    """Fields that the tenant has set; the others are the service's defaults."""


class HubTokenView(View):
    """Which token fetches models and datasets from the hub: the tenant's or the service's."""

    source: str
    """``tenant``: its own; ``service``: the operator's, for all tenants without one; ``none``."""
    set_at: datetime | None
    """When the tenant's own was set."""
