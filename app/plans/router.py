"""``POST /v1/jobs:plan`` and the plans that it keeps: HTTP only."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.deps import JobsReader, JobsWriter, ServiceDep, SessionDep
from app.plans import service
from app.plans.schemas import KeptPlanView, PlanView
from app.web import problems
from app.web.problems import documented
from core.contract.spec import JobSpec

router = APIRouter(tags=["jobs"])


@router.post(
    "/v1/jobs:plan",
    responses=documented(
        problems.MALFORMED_REQUEST,
        problems.BODY_TOO_LARGE,
        problems.HUB_TOKEN_UNREADABLE,
        problems.HUB_UNAVAILABLE,
        problems.BUSY,
    ),
)
async def plan(spec: JobSpec, request: Request, caller: JobsWriter, session: SessionDep, deps: ServiceDep) -> PlanView:
    """What this job would take, and every reason it would be refused; nothing is run.

    Reads config.json and the headers of the model's files only. Bytes are exact; memory and time are estimates. The
    plan is kept for 24 hours: `POST /v1/jobs` with the same body and `plan: <digest>` runs exactly it.
    """
    return await service.plan(request, caller, session, deps, spec=spec)


@router.get("/v1/plans/{digest}", responses=documented(problems.NOT_FOUND))
async def get(digest: str, caller: JobsReader, session: SessionDep) -> KeptPlanView:
    """What was planned, for 24 hours: the fields to send with `plan: <digest>`, and what they were resolved to."""
    return await service.view_stored(session, tenant=caller.tenant, digest=digest)
