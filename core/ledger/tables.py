"""The ledger: every table of the service, in one place, because API and worker both stand on it.

Times are ``timestamptz`` and come from the database's clock. A job is *leased* while a worker holds it; the number of
the attempt is the fencing token that every write of that worker carries.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.ledger.states import LEASED, JobStatus


def _quoted(values: frozenset[JobStatus] | type[JobStatus]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 -- SQLAlchemy reads it from the class
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[dict[str, Any]]: JSONB,
        str: Text,
        list[str]: ARRAY(Text),
    }


def _now() -> Mapped[datetime]:
    return mapped_column(server_default=func.clock_timestamp())


NEWEST = (text("created_at DESC"), text("id DESC"))


class Job(Base):
    """One quantization, from request to result."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN ({_quoted(JobStatus)})", name="status"),
        CheckConstraint(f"(status IN ({_quoted(LEASED)})) = (lease_until IS NOT NULL)", name="leased"),
        CheckConstraint("attempt >= 0", name="attempt"),
        Index("ix_jobs_claim", text("priority DESC"), "created_at", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_queued", "tenant", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_lease", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index("ix_jobs_page", "tenant", text("created_at DESC"), text("id DESC")),
        Index("ix_jobs_by_status", "tenant", "status", *NEWEST),
        Index("ix_jobs_by_model", "tenant", "model_id", *NEWEST),
        Index("ix_jobs_by_scheme", "tenant", "scheme", *NEWEST),
        Index("ix_jobs_by_alias", "tenant", "alias", *NEWEST, postgresql_where=text("alias IS NOT NULL")),
        Index(
            "ix_jobs_turn",
            "tenant",
            text("priority DESC"),
            "created_at",
            postgresql_where=text("status = 'queued' AND waiting IS NULL"),
        ),
        Index("ix_jobs_waiting_since", "queued_at", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_max_wait", "id", postgresql_where=text("status = 'queued' AND max_wait_s IS NOT NULL")),
        Index("ix_jobs_dataset_queued", "tenant", "dataset", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_dataset_held", "tenant", "dataset", postgresql_where=text("lease_until IS NOT NULL")),
        Index("ix_jobs_finished", "tenant", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("ix_jobs_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
        Index("ix_jobs_stored", "tenant", "artifact_bytes", postgresql_where=text("artifact_bytes IS NOT NULL")),
        Index(
            "ix_jobs_alias",
            "tenant",
            "alias",
            text("finished_at DESC"),
            postgresql_where=text("alias IS NOT NULL AND status = 'succeeded'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str | None]
    alias: Mapped[str | None]
    """Repository id under which the Hub protocol serves the newest succeeded job that carries it."""
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    spec: Mapped[dict[str, Any]]
    """The validated ``JobSpec`` but for its alias, which is no concern of the worker; never changed."""
    spec_version: Mapped[int] = mapped_column(Integer, server_default="1")
    """What a worker must understand to take it: see ``core.contract.versions``."""
    model_id: Mapped[str]
    method: Mapped[str]
    scheme: Mapped[str]
    dataset: Mapped[str | None]
    """The dataset that ``spec`` names; a trigger fills the column."""
    device: Mapped[str | None]
    """The class of device that it asks for: ``cpu``, ``gpu``, or a part of a GPU's name."""
    needs_host_cpu: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes that its plan expects, as the next three; null: nothing is known, and any worker may take it."""
    needs_host_cuda: Mapped[int | None] = mapped_column(BigInteger)
    needs_device: Mapped[int | None] = mapped_column(BigInteger)
    needs_disk: Mapped[int | None] = mapped_column(BigInteger)

    status: Mapped[str] = mapped_column(String(16), server_default=JobStatus.QUEUED.value)
    phase: Mapped[str | None]
    priority: Mapped[int] = mapped_column(Integer, server_default="0")
    run_after: Mapped[datetime] = _now()
    max_wait_s: Mapped[int | None] = mapped_column(Integer)
    """Seconds that it may wait, each time, before the keeper fails it."""
    rung_at: Mapped[datetime | None]
    """When workers were last notified of it; the keeper notifies them again after a while."""

    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    """The fencing token: counts claims, only ever grows."""
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    avoid: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    """Workers that failed it since its last new block; they do not take it while others live."""
    waiting: Mapped[dict[str, Any] | None]
    """``{"code", "message"}``: why no living worker can take the job; the keeper writes it."""
    barren_attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    """Attempts in a row that ended without a new block; ``QE_BARREN_ATTEMPTS`` of them fail the job."""

    blocks_done: Mapped[int] = mapped_column(Integer, server_default="0")
    blocks_total: Mapped[int | None] = mapped_column(Integer)
    block_seconds: Mapped[float | None] = mapped_column(Float)
    """Moving average over the finished blocks of this job."""
    progress: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """What the runner last said: current group, samples observed."""

    plan: Mapped[dict[str, Any] | None]
    """The estimate from when the job was made: ``{"digest", "seconds_per_block": {device: s}, …}``."""

    forked_from: Mapped[str | None]
    """The job whose files this one may take over; it may be gone by now."""
    comparison_id: Mapped[str | None] = mapped_column(index=True)
    """Jobs of one comparison take over each other's."""
    trace_context: Mapped[dict[str, Any] | None]
    """W3C headers that name the request's span, to which those of the attempts belong; null when it was not traced."""

    summary: Mapped[dict[str, Any] | None]
    """The figures of a finished run: errors, KL, bits, bytes."""
    verdict: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    """``{"code", "message", "retryable"}`` of a failed job."""
    artifact_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of all files of a finished job."""
    event_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Sequence number of the job's last event; dense from 1."""

    created_at: Mapped[datetime] = _now()
    queued_at: Mapped[datetime] = _now()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """When it was deleted. The API does not see it any more (row-level security), and the keeper removes it."""


class Attempt(Base):
    """One worker's hold on a job."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    worker: Mapped[str]
    started_at: Mapped[datetime] = _now()
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    resumed_from_block: Mapped[int | None] = mapped_column(Integer)
    """Number of blocks that earlier attempts had finished and this one did not compute again."""
    blocks_done: Mapped[int] = mapped_column(Integer, server_default="0")
    """New blocks of this attempt."""
    device: Mapped[str | None]
    """What the worker said of itself when it took the job."""


class FinishedBlock(Base):
    """A finished block: its report, and the files from which another worker can go on."""

    __tablename__ = "layers"
    __table_args__ = (Index("ix_layers_files", "job_id", postgresql_where=text("files <> '[]'::jsonb")),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    block: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    seconds: Mapped[float] = mapped_column(Float)
    report: Mapped[dict[str, Any]]
    """``{"seconds_by_phase": {...}, "groups": [GroupReport, ...]}``; of a model with several stacks ``"stack"``,
    ``"index"`` and ``"part"`` too."""
    files: Mapped[list[dict[str, Any]]]
    """``[{"name", "bytes", "sha256", "key"}]``: ``name`` in the work directory, ``key`` in storage."""
    created_at: Mapped[datetime] = _now()


class JobEvent(Base):
    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    type: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = _now()


class Artifact(Base):
    """One file of a finished checkpoint. The name selects the row; only the row knows where the bytes are."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    key: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    media_type: Mapped[str]
    created_at: Mapped[datetime] = _now()


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
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime | None]
    """When it expires; no new job can have it then. Null: never."""


class ApiKey(Base):
    __tablename__ = "api_keys"
    __table_args__ = (Index("ix_api_keys_page", "tenant", text("created_at DESC"), text("id DESC")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """HMAC-SHA256 of the key under the service's secret; the key itself is shown once and not stored."""
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Comparison(Base):
    """Several schemes or methods on one model and dataset: its jobs name it."""

    __tablename__ = "comparisons"
    __table_args__ = (Index("ix_comparisons_page", "tenant", text("created_at DESC"), text("id DESC")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str | None]
    request: Mapped[dict[str, Any]]
    """The body that it was made of."""
    created_at: Mapped[datetime] = _now()


class Plan(Base):
    """What a job would take, for 24 hours, so that a job can be made of exactly that."""

    __tablename__ = "plans"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    spec: Mapped[dict[str, Any]]
    """The part of the body that decides what is computed."""
    resolved: Mapped[dict[str, Any]]
    """``model_commit`` or ``model_fingerprint``, ``dataset_commit`` or ``dataset_sha256``."""
    estimate: Mapped[dict[str, Any]]
    """What a job made of it keeps in ``jobs.plan``."""
    refused: Mapped[list[dict[str, Any]]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp(), index=True)


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


class Worker(Base):
    """Who is alive. Informational: a lease, not this row, says who holds a job."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    device: Mapped[str]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Memory of the machine or its container; null where the worker could not tell."""
    device_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Memory of the smallest of its GPUs; null without one."""
    free_disk_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Free space of its work directory."""
    cores: Mapped[int | None] = mapped_column(Integer)
    started_at: Mapped[datetime] = _now()
    seen_at: Mapped[datetime] = _now()
    job_id: Mapped[str | None]
    spec_version: Mapped[int] = mapped_column(Integer, server_default="1")
    """The newest that it understands."""
    state: Mapped[str] = mapped_column(server_default="ready")
    """``ready``, ``stopped``: it takes no job until somebody has looked at it, or ``resting``: not those of some
    tenants."""
    state_reason: Mapped[str | None]


class Webhook(Base):
    """A URL that wants to be told of a tenant's jobs."""

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint("status IN ('enabled', 'disabled')", name="status"),
        Index("ix_webhooks_page", "tenant", text("created_at DESC"), text("id DESC")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    description: Mapped[str] = mapped_column(server_default="")
    status: Mapped[str] = mapped_column(String(16), server_default="enabled")
    disabled_reason: Mapped[str | None]
    secret: Mapped[str]
    """Sealed for this row: see ``core.secret``."""
    previous_secret: Mapped[str | None]
    previous_until: Mapped[datetime | None]
    """Until when the secret before the last rotation signs too."""
    given_up_in_a_row: Mapped[int] = mapped_column(Integer, server_default="0")
    """Deliveries that failed on every attempt since one last got through."""
    busy_until: Mapped[datetime | None]
    """A keeper is sending one of its messages, or died while it did."""
    taken_at: Mapped[datetime | None]
    """When a message was last taken to be sent."""
    created_at: Mapped[datetime] = _now()
    updated_at: Mapped[datetime] = _now()


class WebhookDelivery(Base):
    """One message to one webhook, written in the transaction of the event that it tells of."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
        CheckConstraint("(status = 'pending') = (due_at IS NOT NULL)", name="due"),
        UniqueConstraint("webhook_id", "message_id", name="uq_webhook_deliveries_message"),
        Index("ix_webhook_deliveries_due", "webhook_id", "due_at", postgresql_where=text("status = 'pending'")),
        Index(
            "ix_webhook_deliveries_finished", "tenant", "finished_at", postgresql_where=text("finished_at IS NOT NULL")
        ),
        Index("ix_webhook_deliveries_page", "webhook_id", text("created_at DESC"), text("id DESC")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    tenant: Mapped[str]
    message_id: Mapped[str]
    """``evt_…``, made of job and ``seq``: the same at every webhook and on every attempt."""
    event_type: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(16), server_default="pending")
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    """Counts how often it was taken to be sent; the fencing token of the sender."""
    step: Mapped[int] = mapped_column(Integer, server_default="0")
    """Place in the schedule of attempts."""
    due_at: Mapped[datetime | None] = mapped_column(server_default=func.clock_timestamp())
    created_at: Mapped[datetime] = _now()
    finished_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """What came of sending a message once."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    tenant: Mapped[str]
    at: Mapped[datetime] = _now()
    status_code: Mapped[int | None] = mapped_column(Integer)
    error: Mapped[str | None]
    milliseconds: Mapped[int] = mapped_column(Integer)


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
    created_at: Mapped[datetime] = _now()


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


class ServiceSecret(Base):
    """The one row says with which QE_SECRET this database is used: ``core.preflight`` compares."""

    __tablename__ = "service_secret"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    digest: Mapped[str]
    since: Mapped[datetime] = _now()


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


class HubToken(Base):
    """A tenant's own token for the Hugging Face Hub, sealed under QE_HUB_KEY: ``core.secret``."""

    __tablename__ = "hub_tokens"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    sealed: Mapped[str]
    set_at: Mapped[datetime] = _now()


class StorageRemoval(Base):
    """Objects that no row names any more: the keeper removes all below the prefix, then this row."""

    __tablename__ = "storage_removals"

    prefix: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    created_at: Mapped[datetime] = _now()


class TenantTurn(Base):
    """When a tenant last had a job claimed. Who claims for it locks its row, so that no two do at the same moment."""

    __tablename__ = "tenant_turns"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    served_at: Mapped[datetime | None]


class JobLabel(Base):
    """A label of a job, for queries by label: a trigger keeps it as ``jobs.labels`` is."""

    __tablename__ = "job_labels"
    __table_args__ = (
        Index("ix_job_labels_value", "tenant", "key", "value", text("created_at DESC"), text("job_id DESC")),
        Index("ix_job_labels_key", "tenant", "key", text("created_at DESC"), text("job_id DESC")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    value: Mapped[str]
    created_at: Mapped[datetime]
