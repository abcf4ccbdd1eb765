"""What a tenant has beside its jobs: keys, datasets, limits, usage, audit; and what the service keeps about itself."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Float,
    Index,
    Integer,
    String,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.ledger.tables.base import Base, now


class ApiKey(Base):
    __tablename__ = "api_keys"
    __table_args__ = (Index("ix_api_keys_page", "tenant", text("created_at DESC"), text("id DESC")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """HMAC-SHA256 of the key under the service's secret; the key itself is shown once and not stored."""
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = now()
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Dataset(Base):
    """Uploaded calibration rows. Immutable: another upload is another dataset."""

    __tablename__ = "datasets"
    __table_args__ = (
        CheckConstraint("status IN ('ready', 'invalid')", name="status"),
        Index("ix_datasets_page", "tenant", text("created_at DESC"), text("id DESC")),
        Index("ix_datasets_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str | None]
    format: Mapped[str]
    status: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str | None]
    """Where the bytes are; null when nothing was kept, or it has expired and nothing is."""
    rows: Mapped[int] = mapped_column(Integer)
    images: Mapped[int] = mapped_column(Integer)
    problems: Mapped[list[dict[str, Any]]] = mapped_column(server_default=text("'[]'"))
    """``[{"row", "message"}]``, at most the first hundred."""
    created_at: Mapped[datetime] = now()
    expires_at: Mapped[datetime | None]
    """When it expires; no new job can have it then. Null: never."""


class HubToken(Base):
    """A tenant's own token for the Hugging Face Hub, sealed under QE_HUB_KEY: ``core.secret``."""

    __tablename__ = "hub_tokens"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    sealed: Mapped[str]
    set_at: Mapped[datetime] = now()


class TenantLimits(Base):
    """Bounds of one tenant where they are not the settings'. Null: as in the settings. Operators write it, in SQL."""

    __tablename__ = "tenant_limits"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    max_queued_jobs: Mapped[int | None] = mapped_column(Integer)
    max_running_jobs: Mapped[int | None] = mapped_column(Integer)
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    weight: Mapped[int | None] = mapped_column(Integer)
    """The tenant's share of the workers: while both have waiting jobs, it may hold this many for each one that a tenant
    of weight 1 holds."""


class Retention(Base):
    """For how many days a tenant wants things kept. Null: as in the settings."""

    __tablename__ = "retention"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    jobs_days: Mapped[int | None] = mapped_column(Integer)
    """Days that a finished job is kept with all that belongs to it, from its end."""
    events_days: Mapped[int | None] = mapped_column(Integer)
    """Days that the events of a finished job are kept, all but the last."""
    layers_days: Mapped[int | None] = mapped_column(Integer)
    """Days that the reports of a finished job's blocks are kept."""
    audit_days: Mapped[int | None] = mapped_column(Integer)
    deliveries_days: Mapped[int | None] = mapped_column(Integer)
    """Days that finished deliveries of webhooks are kept."""
    events_until: Mapped[datetime | None]
    """Events of jobs that had ended by then are gone; the keeper goes on from there."""
    layers_until: Mapped[datetime | None]


class UsageDay(Base):
    """What a tenant's jobs used, by day, in UTC; triggers count. Its sums are over the shards."""

    __tablename__ = "usage_days"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[datetime] = mapped_column(primary_key=True)
    shard: Mapped[int] = mapped_column(Integer, primary_key=True)
    """So that those who count at the same moment seldom wait for each other."""
    jobs_created: Mapped[int] = mapped_column(BigInteger, server_default="0")
    jobs_succeeded: Mapped[int] = mapped_column(BigInteger, server_default="0")
    jobs_failed: Mapped[int] = mapped_column(BigInteger, server_default="0")
    jobs_cancelled: Mapped[int] = mapped_column(BigInteger, server_default="0")
    bytes_added: Mapped[int] = mapped_column(BigInteger, server_default="0")
    worker_seconds: Mapped[float] = mapped_column(Float, server_default="0")
    gpu_seconds: Mapped[float] = mapped_column(Float, server_default="0")


class AuditEntry(Base):
    """Who did what to which thing: written in the transaction of the act."""

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_page", "tenant", text("created_at DESC"), text("id DESC")),
        Index("ix_audit_object", "tenant", "object_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    key_id: Mapped[str]
    """A key, or ``bootstrap``."""
    action: Mapped[str]
    object_id: Mapped[str]
    request_id: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = now()


class IdempotencyRecord(Base):
    """The answer to a request that carried an ``Idempotency-Key``, kept for 24 hours."""

    __tablename__ = "idempotency"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_digest: Mapped[str] = mapped_column(String(64))
    status_code: Mapped[int | None] = mapped_column(Integer)
    """Null while the first request is still being answered."""
    response: Mapped[dict[str, Any] | None]
    location: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp(), index=True)


class ServiceSecret(Base):
    """The one row says with which QE_SECRET this database is used: ``core.preflight`` compares."""

    __tablename__ = "service_secret"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    digest: Mapped[str]
    since: Mapped[datetime] = now()


class StorageRemoval(Base):
    """Objects that no row names any more: the keeper removes all below the prefix, then this row."""

    __tablename__ = "storage_removals"

    prefix: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    created_at: Mapped[datetime] = now()
