"""The columns of a job that a response shows, read without SQLAlchemy (see ``app.db.pipeline``)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass
class JobRow:
    """Fields of ``Job`` by the same names."""

    id: str
    name: str | None
    alias: str | None
    labels: dict[str, Any]
    spec: dict[str, Any]
    model_id: str
    method: str
    scheme: str
    max_wait_s: int | None
    priority: int
    device: str | None
    status: str
    phase: str | None
    attempt: int
    worker: str | None
    waiting: dict[str, Any] | None
    blocks_done: int
    blocks_total: int | None
    block_seconds: float | None
    progress: dict[str, Any]
    plan: dict[str, Any] | None
    forked_from: str | None
    comparison_id: str | None
    summary: dict[str, Any] | None
    verdict: str | None
    error: dict[str, Any] | None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
