"""What runs: jobs with their attempts, blocks, events and files, and the workers that claim them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.ledger.states import LEASED, JobStatus
from core.ledger.tables.base import NEWEST, Base, now


def _quoted(values: frozenset[JobStatus] | type[JobStatus]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))


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
        Index(
            "ix_jobs_evaluated_queued",
            "tenant",
            "evaluation_dataset",
            postgresql_where=text("evaluation_dataset IS NOT NULL AND status = 'queued'"),
        ),
        Index(
            "ix_jobs_evaluated_held",
            "tenant",
            "evaluation_dataset",
            postgresql_where=text("evaluation_dataset IS NOT NULL AND lease_until IS NOT NULL"),
        ),
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
    """The dataset that ``spec`` names; a trigger fills the column, and the next one."""
    evaluation_dataset: Mapped[str | None]
    """That of its evaluation."""
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
    run_after: Mapped[datetime] = now()
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

    created_at: Mapped[datetime] = now()
    queued_at: Mapped[datetime] = now()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """When it was deleted. The API does not see it any more (row-level security), and the keeper removes it."""


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


class Attempt(Base):
    """One worker's hold on a job."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    worker: Mapped[str]
    started_at: Mapped[datetime] = now()
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
    created_at: Mapped[datetime] = now()


class JobEvent(Base):
    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    type: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = now()


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
    created_at: Mapped[datetime] = now()


class Comparison(Base):
    """Several schemes or methods on one model and dataset: its jobs name it."""

    __tablename__ = "comparisons"
    __table_args__ = (Index("ix_comparisons_page", "tenant", text("created_at DESC"), text("id DESC")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str | None]
    request: Mapped[dict[str, Any]]
    """The body that it was made of."""
    created_at: Mapped[datetime] = now()


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
    started_at: Mapped[datetime] = now()
    seen_at: Mapped[datetime] = now()
    job_id: Mapped[str | None]
    spec_version: Mapped[int] = mapped_column(Integer, server_default="1")
    """The newest that it understands."""
    state: Mapped[str] = mapped_column(server_default="ready")
    """``ready``, ``stopped``: it takes no job until somebody has looked at it, or ``resting``: not those of some
    tenants."""
    state_reason: Mapped[str | None]


class TenantTurn(Base):
    """When a tenant last had a job claimed. Who claims for it locks its row, so that no two do at the same moment."""

    __tablename__ = "tenant_turns"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    served_at: Mapped[datetime | None]
