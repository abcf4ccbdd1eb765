"""Checks before a job is created: it matches its plan, or some worker is large enough for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets.queries import ready_dataset
from app.db.engine import release
from app.models.files import read_model
from app.plans.queries import stored_plan
from app.plans.schemas import JobRequest, ResolvedInputs, errors_of
from app.plans.service import (
    DECIDES,
    PlannedJob,
    datasets_of,
    deciding_fields,
    fleet_of,
    plan_for_fleet,
    stored_estimate,
)
from app.web import problems
from app.web.problems import Problem
from app.web.threads import run_in_thread
from core.contract.spec import JobSpec
from core.ledger.tables import Dataset
from core.settings import Settings
from core.storage import Storage
from quant_experts.planning.errors import Refusal, Unreadable
from quant_experts.spec.prefixes import LOCAL, UPLOADED


@dataclass(frozen=True)
class Agreement:
    """``progress``: commits that pin the inputs of the job. ``estimate``: goes into its row."""

    progress: dict[str, Any]
    estimate: dict[str, Any] | None


NO_AGREEMENT = Agreement({}, None)


def needs_reading(spec: JobRequest) -> bool:
    """Whether ``agree`` has something to check: not for a hub model without a plan."""
    return spec.plan is not None or spec.model.id.startswith(LOCAL)


async def agree(
    session: AsyncSession, *, tenant: str, spec: JobRequest, settings: Settings, storage: Storage
) -> Agreement:
    """Raises Problem as ``check_plan`` or ``check_fits_workers``. Reads files without a database connection."""
    if spec.plan is not None:
        return await check_plan(session, tenant=tenant, spec=spec, digest=spec.plan, settings=settings)
    return await check_fits_workers(session, tenant=tenant, spec=spec, settings=settings, storage=storage)


async def check_plan(
    session: AsyncSession, *, tenant: str, spec: JobSpec, digest: str, settings: Settings
) -> Agreement:
    """Check the job against its stored plan. Raises Problem: 422 for a plan that does not exist, was refused, or has
    another body; 409 when the local model or the dataset has changed."""
    plan = await stored_plan(session, tenant=tenant, digest=digest)
    if plan is None:
        raise _at("/plan", problems.PLAN_NOT_FOUND, f"no plan {digest[:12]}…: make one with POST /v1/jobs:plan")
    body = deciding_fields(spec)
    other = [name for name in DECIDES if body.get(name) != plan.spec.get(name)]
    if other:
        errors = [{"pointer": f"/{name}", "detail": "differs from the plan"} for name in other]
        raise Problem(problems.PLAN_MISMATCH, f"{' and '.join(other)}: differs from the plan", errors=errors)
    if plan.refused:
        raise Problem(problems.PLAN_REFUSED, plan.refused[0]["detail"], errors=errors_of(list(plan.refused)))
    await _check_datasets(session, tenant=tenant, spec=spec, resolved=plan.resolved)
    await release(session)
    await _check_model(spec, plan.resolved, settings)
    pins = ("model_commit", "model_fingerprint", "dataset_commit", "evaluation_commit")
    return Agreement({name: plan.resolved[name] for name in pins if plan.resolved.get(name)}, dict(plan.estimate))


async def _check_datasets(session: AsyncSession, *, tenant: str, spec: JobSpec, resolved: Mapping[str, Any]) -> None:
    for pointer, name in datasets_of(spec).items():
        if not name.startswith(UPLOADED):
            continue
        dataset = await ready_dataset(session, tenant=tenant, dataset_id=name)
        planned = "evaluation_sha256" if pointer.startswith("/evaluation") else "dataset_sha256"
        if dataset is not None and dataset.sha256 != resolved.get(planned):
            raise _at(pointer, problems.PLAN_OUTDATED, "the dataset has changed since it was planned: plan again")


async def _check_model(spec: JobSpec, resolved: Mapping[str, Any], settings: Settings) -> None:
    fingerprint = resolved.get("model_fingerprint")
    if fingerprint is None:
        return
    try:
        model = await run_in_thread(lambda: read_model(spec.model, settings))
    except Unreadable as error:
        raise _at("/model/id", problems.PLAN_OUTDATED, f"the model cannot be read any more: {error}") from None
    if model is not None and model.fingerprint != fingerprint:
        raise _at(
            "/model/id", problems.PLAN_OUTDATED, "the model's files have changed since it was planned: plan again"
        )


async def check_fits_workers(
    session: AsyncSession, *, tenant: str, spec: JobSpec, settings: Settings, storage: Storage
) -> Agreement:
    """Estimate a job without a plan, unless its model is on the hub. Nothing is pinned. Commits ``session``.

    Raises Problem 422 when every live worker is too small. The worker reports other problems in the job's error.
    """
    if not spec.model.id.startswith(LOCAL):
        return NO_AGREEMENT
    dataset: Dataset | None = None
    if spec.calibration.dataset.startswith(UPLOADED):
        dataset = await ready_dataset(session, tenant=tenant, dataset_id=spec.calibration.dataset)
    fleet = await fleet_of(session, tenant=tenant, settings=settings)
    await release(session)
    try:
        model = await run_in_thread(lambda: read_model(spec.model, settings))
    except Unreadable:
        return NO_AGREEMENT
    refusals: list[Refusal] = []
    plan, fits = await plan_for_fleet(fleet, spec, model, dataset, settings, storage, refusals)
    too_small = next((refusal for refusal in refusals if refusal.code == "insufficient_memory"), None)
    if too_small is not None:
        raise Problem(problems.INSUFFICIENT_MEMORY, too_small.message)
    if plan is None or model is None:
        return NO_AGREEMENT
    resolved = ResolvedInputs(
        model_commit=None,
        model_fingerprint=model.fingerprint,
        dataset_commit=None,
        dataset_sha256=dataset.sha256 if dataset else None,
    )
    return Agreement({}, stored_estimate(PlannedJob(spec, resolved, plan, (), fits)))


def _at(pointer: str, kind: problems.ProblemType, detail: str) -> Problem:
    return Problem(kind, detail, errors=[{"pointer": pointer, "detail": detail}])
