"""The service itself: workers, schemes, models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from quant_experts.client.views.base import View


class WorkerView(View):
    id: str
    host: str
    device: str
    alive: bool
    busy: bool
    state: str = "ready"
    """``stopped``: it takes no job until somebody has looked at it."""
    state_reason: str | None = None
    job_id: str | None
    started_at: datetime
    seen_at: datetime


class WorkerList(View):
    data: list[WorkerView]


class Schemes(View):
    """What a job may ask for."""

    schemes: list[dict[str, Any]]
    group_sizes: list[int | str]
    methods: list[dict[str, Any]]
    smoothings: list[str]
    roundings: list[str]
    reconstructions: list[str]


class LocalModel(View):
    id: str
    model_type: str | None
    problem: str | None
    """Why a job would refuse it."""


class ModelList(View):
    """What a job may name: the service's local models, and every hub model of the families."""

    data: list[LocalModel]
    families: list[str]
    note: str | None
    """Why ``data`` may not be all."""
