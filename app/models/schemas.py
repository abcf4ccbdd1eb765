"""What clients see of the models that a job may name."""

from __future__ import annotations

from pydantic import BaseModel, Field


class LocalModel(BaseModel):
    id: str = Field(examples=["local/tiny"], description="As a job names it.")
    model_type: str | None = Field(description="From its config.json.")
    problem: str | None = Field(description="Why a job would refuse it; null when its config.json says nothing of it.")


class ModelList(BaseModel):
    """Local models of the service. Beside them every hub model of the families can be named."""

    data: list[LocalModel]
    families: list[str] = Field(description="`model_type` of every model that can be quantized.")
    note: str | None = Field(description="Why `data` may not be all; else null.")
