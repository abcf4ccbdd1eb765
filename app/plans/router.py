"""``POST /v1/jobs:plan``: HTTP only."""

from __future__ import annotations

from fastapi import APIRouter

from app import problems
from app.contract.spec import JobSpec
from app.deps import JobsWriter, ServiceDep, SessionDep
from app.plans import service
from app.plans.schemas import PlanView
from app.problems import documented

router = APIRouter(tags=["jobs"])


@router.post(
    "/v1/jobs:plan",
    responses=documented(problems.MALFORMED_REQUEST, problems.BODY_TOO_LARGE, problems.HUB_UNAVAILABLE),
)
async def plan(spec: JobSpec, caller: JobsWriter, session: SessionDep, parts: ServiceDep) -> PlanView:
    """What this job would take, and every reason it would be refused; nothing is run.

    Reads config.json and the headers of the model's files only. Bytes are exact; memory and time are estimates. The
    plan is kept for 24 hours: `POST /v1/jobs` with the same body and `plan: <digest>` runs exactly it.
    """
    planned = await service.plan_job(
        session, tenant=caller.tenant, spec=spec, settings=parts.settings, storage=parts.storage
    )
    return await service.keep_plan(session, tenant=caller.tenant, planned=planned)
