"""What clients see of the service itself."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ready", "degraded", "unavailable"]
    checks: dict[str, str] = Field(description="`ok`, or what is wrong, for database, storage and broker.")


class SchemeView(BaseModel):
    name: str = Field(examples=["W4A6"])
    weight_bits: int
    activation_bits: int


class PlaceView(BaseModel):
    scheme: str
    bits: float = Field(description="Stored per quantized weight.")
    kl: float = Field(description="To the full-precision model, nats per token.")
    cpu_seconds: int = Field(description="Seconds of the fit.")


class MethodView(BaseModel):
    name: str
    smoothing: str
    rounding: str
    reconstruction: str
    measured: list[PlaceView] = Field(description="On `measured_on`; empty where it was not.")


class Schemes(BaseModel):
    """What a job may ask for."""

    schemes: list[SchemeView] = Field(description="The named ones; any W<2..8>A<4..8 or 16> works.")
    group_sizes: list[int | str]
    methods: list[MethodView]
    measured_on: str = Field(description="The model of the methods' figures.")
    smoothings: list[str]
    roundings: list[str]
    reconstructions: list[str]


class WorkerView(BaseModel):
    id: str
    host: str
    device: str
    alive: bool = Field(description="Heard of within one lease.")
    busy: bool
    state: str = Field(
        description="`ready`; `stopped`: it takes no job until somebody has looked at it; `resting`: not those of some "
        "tenants, whose jobs failed there one after the other."
    )
    state_reason: str | None = Field(description="Reason, where the worker is stopped or resting.")
    job_id: str | None = Field(description="The job it holds, when it is the caller's.")
    started_at: datetime
    seen_at: datetime


class WorkerList(BaseModel):
    data: list[WorkerView]


class ProblemEntry(BaseModel):
    type: str
    status: int
    title: str
    retryable: bool
