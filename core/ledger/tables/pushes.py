"""Pushes of finished jobs to repositories and buckets, and the keys of the tenants' buckets."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, CheckConstraint, ForeignKey, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from core.ledger.tables.base import Base, now


class Push(Base):
    """The files of one job, on their way to one destination. A keeper carries them."""

    __tablename__ = "pushes"
    __table_args__ = (
        CheckConstraint(
            "status IN ('waiting', 'queued', 'running', 'succeeded', 'failed', 'cancelled')", name="status"
        ),
        CheckConstraint("(status IN ('queued', 'running')) = (due_at IS NOT NULL)", name="due"),
        CheckConstraint("(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="end"),
        Index("ix_pushes_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("ix_pushes_waiting", "job_id", postgresql_where=text("status = 'waiting'")),
        Index("ix_pushes_page", "job_id", text("created_at DESC"), text("id DESC")),
        Index("ix_pushes_unfinished_of_tenant", "tenant", postgresql_where=text("finished_at IS NULL")),
        Index(
            "uq_pushes_unfinished",
            "job_id",
            "destination",
            "export",
            unique=True,
            postgresql_where=text("finished_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    destination: Mapped[str]
    """See ``core.contract.destination``."""
    export: Mapped[str] = mapped_column(server_default="")
    """Format of the export that is pushed; empty: the checkpoint."""
    private: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    """A repository that does not exist yet becomes private, and one that is public gets nothing."""
    if_accepted: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """Asked for with the job: a checkpoint that misses its ``accept_if`` is not pushed."""
    status: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    """Counts how often it was taken; the fencing token of the keeper that has it."""
    step: Mapped[int] = mapped_column(Integer, server_default="0")
    """Place in the schedule of attempts."""
    due_at: Mapped[datetime | None]
    """When it may be taken; of one that runs, when its keeper is taken for dead."""
    error: Mapped[str | None]
    """Why the last attempt failed, or why it ended without success."""
    files_total: Mapped[int | None] = mapped_column(Integer)
    files_done: Mapped[int] = mapped_column(Integer, server_default="0")
    bytes_total: Mapped[int | None] = mapped_column(BigInteger)
    bytes_done: Mapped[int] = mapped_column(BigInteger, server_default="0")
    result: Mapped[dict[str, Any] | None]
    """``{"url"}``, and of a repository ``"commit"``."""
    created_at: Mapped[datetime] = now()
    finished_at: Mapped[datetime | None]


class Bucket(Base):
    """A tenant's key for one bucket of its own."""

    __tablename__ = "buckets"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    endpoint_url: Mapped[str | None]
    """Null: Amazon's."""
    region: Mapped[str | None]
    path_style: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    access_key_id: Mapped[str]
    sealed: Mapped[str]
    """The secret access key, sealed under QE_SECRET: ``core.secret``."""
    set_at: Mapped[datetime] = now()
