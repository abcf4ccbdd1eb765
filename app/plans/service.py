"""Make plans and store them for a day."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from fastapi import Request
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Caller
from app.datasets.expiry import unusable_reason
from app.datasets.queries import ready_dataset
from app.db.engine import release
from app.deps import Service
from app.hub_tokens.service import token_of
from app.models.files import ModelFiles, dataset_commit, read_model
from app.plans.capacity import fits_of, memory_refusal
from app.plans.estimation import estimate
from app.plans.evaluation import bounds_refusal
from app.plans.queries import PLAN_LIFETIME, measured_ratios, stored_plan, workers_alive
from app.plans.schemas import Estimate, KeptPlanView, PlanView, RefusalView, ResolvedInputs, WarningView, WorkerFit
from app.web import problems
from app.web.problems import Problem
from app.web.threads import run_in_thread
from core.contract.spec import JobSpec
from core.ledger.tables import Dataset, Worker
from core.ledger.tables import Plan as StoredPlan
from core.settings import Settings
from core.storage import Storage
from quant_experts.planning.errors import HubUnavailable, Refusal, Unreadable
from quant_experts.planning.plan import Plan, digest_of
from quant_experts.planning.recipe import Recipe
from quant_experts.spec.prefixes import LOCAL, UPLOADED

DIGEST = re.compile(r"[0-9a-f]{64}")
DECIDES = ("model", "calibration", "scheme", "method", "options", "target", "exports", "evaluation")
"""Fields of a body that decide what is computed and what it takes."""
LATER_FIELDS = ("exports", "evaluation")


@dataclass(frozen=True)
class PlannedJob:
    """``plan``: None when the model cannot be read from here."""

    spec: JobSpec
    resolved: ResolvedInputs
    plan: Plan | None
    refusals: tuple[Refusal, ...]
    fits: list[WorkerFit]

    @property
    def digest(self) -> str:
        return digest_of({"spec": deciding_fields(self.spec), "resolved": self.resolved.stored()})


def asks_the_hub(spec: JobSpec) -> bool:
    """Whether the plan waits for the hub. Other plans take a core all the time."""
    return not (
        spec.model.id.startswith(LOCAL) and all(name.startswith(UPLOADED) for name in datasets_of(spec).values())
    )


def datasets_of(spec: JobSpec) -> dict[str, str]:
    """Pointer → dataset, of the rows that the job names."""
    named = {"/calibration/dataset": spec.calibration.dataset}
    if spec.evaluation is not None and spec.evaluation.dataset is not None:
        named["/evaluation/dataset"] = spec.evaluation.dataset
    return named


def deciding_fields(spec: JobSpec) -> dict[str, Any]:
    fields = spec.model_dump(mode="json", include=set(DECIDES))
    # Digests of plans without exports or evaluation are those from before there were any.
    return {name: value for name, value in fields.items() if name not in LATER_FIELDS or value is not None}


async def plan(request: Request, caller: Caller, session: AsyncSession, deps: Service, *, spec: JobSpec) -> PlanView:
    """Plan the job and store the plan for a day. Raises Problem 429, and as ``plan_job``."""
    limiter = deps.planning if asks_the_hub(spec) else deps.reading
    async with limiter(request, caller):
        planned = await plan_job(session, tenant=caller.tenant, spec=spec, settings=deps.settings, storage=deps.storage)
    return await store_plan(session, tenant=caller.tenant, planned=planned)


async def plan_job(
    session: AsyncSession, *, tenant: str, spec: JobSpec, settings: Settings, storage: Storage
) -> PlannedJob:
    """Raises Problem 503 when the hub does not answer, 409 when the tenant's hub token cannot be opened. Problems of
    the job itself are refusals of the plan."""
    refusals: list[Refusal] = []
    model = None
    named = datasets_of(spec)
    uploads = {
        pointer: await ready_dataset(session, tenant=tenant, dataset_id=name)
        for pointer, name in named.items()
        if name.startswith(UPLOADED)
    }
    fleet = await fleet_of(session, tenant=tenant, settings=settings)
    token = await token_of(session, tenant=tenant, settings=settings)
    await release(session)
    try:
        model = await run_in_thread(lambda: read_model(spec.model, settings, token=token))
    except Unreadable as error:
        refusals.append(error.refusal)
    except HubUnavailable as error:
        raise Problem(problems.HUB_UNAVAILABLE, str(error), headers={"Retry-After": "10"}) from None
    commits: dict[str, str] = {}
    for pointer, name in named.items():
        if pointer in uploads:
            refusals += _unusable(name, uploads[pointer], pointer)
            continue
        try:
            commits[pointer] = await run_in_thread(partial(dataset_commit, name, token=token))
        except Unreadable as error:
            refusals.append(replace(error.refusal, pointer=pointer))
        except HubUnavailable as error:
            raise Problem(problems.HUB_UNAVAILABLE, str(error), headers={"Retry-After": "10"}) from None
    if (too_much := bounds_refusal(spec, settings)) is not None:
        refusals.append(too_much)
    dataset, evaluated = uploads.get("/calibration/dataset"), uploads.get("/evaluation/dataset")
    resolved = ResolvedInputs(
        model_commit=model.commit if model else None,
        model_fingerprint=model.fingerprint if model else None,
        dataset_commit=commits.get("/calibration/dataset"),
        dataset_sha256=dataset.sha256 if dataset else None,
        evaluation_commit=commits.get("/evaluation/dataset"),
        evaluation_sha256=evaluated.sha256 if evaluated else None,
    )
    try:
        plan, fits = await plan_for_fleet(fleet, spec, model, dataset, settings, storage, refusals)
    except HubUnavailable as error:
        raise Problem(problems.HUB_UNAVAILABLE, str(error), headers={"Retry-After": "10"}) from None
    return PlannedJob(spec, resolved, plan, tuple(refusals), fits)


@dataclass(frozen=True)
class Fleet:
    """Live workers, and measured over predicted seconds per block of the tenant's jobs."""

    workers: Sequence[Worker]
    ratios: Mapping[str, Sequence[float]]


async def fleet_of(session: AsyncSession, *, tenant: str, settings: Settings) -> Fleet:
    workers = await workers_alive(session, lease=timedelta(seconds=settings.lease))
    return Fleet(workers, await measured_ratios(session, tenant=tenant))


async def plan_for_fleet(
    fleet: Fleet,
    spec: JobSpec,
    model: ModelFiles | None,
    dataset: Dataset | None,
    settings: Settings,
    storage: Storage,
    refusals: list[Refusal],
) -> tuple[Plan | None, list[WorkerFit]]:
    """The plan and the workers that fit. Adds to ``refusals``. Raises HubUnavailable."""
    workers = fleet.workers
    if model is None:
        return None, fits_of(workers, None, spec.device)
    try:
        plan = await estimate(
            model,
            recipe=recipe_of(spec),
            cores=min((worker.cores for worker in workers if worker.cores), default=2),
            ratios=fleet.ratios,
            dataset=dataset,
            settings=settings,
            storage=storage,
        )
    except Unreadable as error:
        refusals.append(error.refusal)
        return None, fits_of(workers, None, spec.device)
    fits = fits_of(workers, plan, spec.device)
    refusals += plan.refusals
    too_small = memory_refusal(workers, plan, spec.device)
    if too_small is not None:
        refusals.append(too_small)
    return plan, fits


def recipe_of(spec: JobSpec) -> Recipe:
    options = spec.options.model_dump(mode="json", exclude_none=True)
    target = spec.target.model_dump(mode="json") if spec.target else None
    return Recipe.of(
        spec.method,
        scheme=spec.scheme,
        target=target,
        exports=spec.exports or (),
        evaluation=spec.evaluation,
        **options,
    )


async def store_plan(session: AsyncSession, *, tenant: str, planned: PlannedJob) -> PlanView:
    values = {
        "spec": deciding_fields(planned.spec),
        "resolved": planned.resolved.stored(),
        "estimate": stored_estimate(planned),
        "refused": [_view(refusal).model_dump() for refusal in planned.refusals],
        "created_at": func.clock_timestamp(),
    }
    statement = insert(StoredPlan).values(tenant=tenant, digest=planned.digest, **values)
    upsert = statement.on_conflict_do_update(index_elements=["tenant", "digest"], set_=values)
    created_at = await session.scalar(upsert.returning(StoredPlan.created_at))
    assert created_at is not None
    spec = planned.spec
    return PlanView(
        digest=planned.digest,
        accepted=not planned.refusals,
        refusals=[_view(refusal) for refusal in planned.refusals],
        warnings=_warnings(planned.plan),
        model=spec.model.model_dump(mode="json"),
        calibration=spec.calibration.model_dump(mode="json"),
        scheme=spec.scheme,
        method=spec.method,
        exports=spec.exports,
        evaluation=spec.evaluation,
        resolved=planned.resolved,
        estimate=Estimate.of(planned.plan, from_hub=planned.resolved.model_commit is not None)
        if planned.plan
        else None,
        workers=planned.fits,
        created_at=created_at,
        expires_at=created_at + PLAN_LIFETIME,
    )


async def view_stored(session: AsyncSession, *, tenant: str, digest: str) -> KeptPlanView:
    """Raises Problem 404 for a plan that does not exist or is older than a day."""
    plan = await stored_plan(session, tenant=tenant, digest=digest) if DIGEST.fullmatch(digest) else None
    if plan is None:
        raise Problem(problems.NOT_FOUND, f"no plan {digest!r}: plans are kept for 24 hours")
    return KeptPlanView.model_validate(
        {
            **plan.spec,
            "digest": plan.digest,
            "accepted": not plan.refused,
            "refusals": plan.refused,
            "warnings": plan.estimate.get("warnings", []),
            "resolved": plan.resolved,
            "created_at": plan.created_at,
            "expires_at": plan.created_at + PLAN_LIFETIME,
        }
    )


def stored_estimate(planned: PlannedJob) -> dict[str, Any]:
    """The part of a plan that its job stores, to compare it with the result and to calibrate later plans."""
    plan = planned.plan
    if plan is None:
        return {"digest": planned.digest}
    return {
        "digest": planned.digest,
        "bytes_after": plan.size.bytes_after_most,
        "effective_bits": plan.size.bits_most,
        "seconds_per_block": {kind: placement.seconds.per_block for kind, placement in plan.placements.items()},
        "seconds": {kind: placement.seconds.likely for kind, placement in plan.placements.items()},
        "memory": {kind: asdict(placement.memory) for kind, placement in plan.placements.items()},
        "disk_bytes": plan.disk,
        "warnings": [warning.model_dump() for warning in _warnings(plan)],
    }


def _unusable(dataset_id: str, dataset: Dataset | None, pointer: str) -> list[Refusal]:
    if dataset is None:
        message = f"no dataset {dataset_id!r}: upload it with POST /v1/datasets"
        return [Refusal("dataset_not_found", message, pointer)]
    wrong = unusable_reason(dataset)
    return [] if wrong is None else [Refusal("dataset_expired", wrong, pointer)]


def _view(refusal: Refusal) -> RefusalView:
    return RefusalView(code=refusal.code, detail=refusal.message, pointer=refusal.pointer)


def _warnings(plan: Plan | None) -> list[WarningView]:
    cautions = plan.cautions if plan is not None else ()
    return [WarningView(code=caution.code, detail=caution.message, pointer=caution.pointer) for caution in cautions]
