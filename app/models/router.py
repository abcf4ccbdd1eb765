"""``/v1/models``: what a job may name as its model."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.deps import AnyCaller, ServiceDep
from app.models.schemas import ModelList
from app.models.service import local_models
from app.web import problems
from app.web.problems import documented

router = APIRouter(prefix="/v1/models", tags=["service"])


@router.get("", responses=documented(problems.BUSY))
async def list_models(request: Request, caller: AnyCaller, deps: ServiceDep) -> ModelList:
    """Local models, and the families that can be quantized."""
    async with deps.reading(request, caller):
        return await local_models(deps.settings)
