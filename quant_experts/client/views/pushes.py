"""Pushes of jobs, and the buckets that a tenant has a key for."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from quant_experts.client.views.base import View

PushStatus = Literal["waiting", "queued", "running", "succeeded", "failed", "cancelled"]
ENDED = ("succeeded", "failed", "cancelled")


class Amount(View):
    done: int
    total: int | None


class PushResult(View):
    url: str
    commit: str | None = None


class PushView(View):
    id: str
    job_id: str
    to: str
    export: str | None
    private: bool
    status: PushStatus
    attempts: int
    files: Amount
    bytes: Amount
    error: str | None
    result: PushResult | None
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None


class BucketView(View):
    name: str
    endpoint_url: str | None
    region: str | None
    path_style: bool
    access_key_id: str
    set_at: datetime


class BucketList(View):
    data: list[BucketView]
