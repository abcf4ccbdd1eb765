"""What is agreed on before a job is made: that it keeps to a plan, or that some worker is large enough for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.engine import release
from app.plans import inputs
from app.plans.inputs import UPLOADED
from app.plans.queries import kept_plan
from app.plans.schemas import JobRequest, ResolvedInputs, errors_of
from app.plans.service import DECIDES, Planned, deciding, estimate_to_keep, estimated, fleet_of, uploaded_dataset
from app.web import problems
from app.web.problems import Problem
from app.web.threads import aside
from core.contract.spec import JobSpec
from core.ledger.tables import Dataset
from core.settings import Settings
from core.storage import Storage
from quant_experts.planning.errors import Refusal, Unreadable


@dataclass(frozen=True)
class Agreed:
    """What a job that keeps to a plan begins with: ``progress`` pins its inputs, ``estimate`` goes into its row."""

    progress: dict[str, Any]
    estimate: dict[str, Any] | None


NOTHING_AGREED = Agreed({}, None)


def needs_reading(spec: JobRequest) -> bool:
    """Is there something to ``agree`` on before the job is made? Not for a hub model without a plan."""
    return spec.plan is not None or spec.model.id.startswith(inputs.LOCAL)


async def agree(
    session: AsyncSession, *, tenant: str, spec: JobRequest, settings: Settings, storage: Storage
) -> Agreed:
    """Raises Problem as ``hold_to_plan`` or ``guard_creation``. Reads files; no connection is held meanwhile."""
    if spec.plan is not None:
        return await hold_to_plan(session, tenant=tenant, spec=spec, digest=spec.plan, settings=settings)
    return await guard_creation(session, tenant=tenant, spec=spec, settings=settings, storage=storage)


async def hold_to_plan(session: AsyncSession, *, tenant: str, spec: JobSpec, digest: str, settings: Settings) -> Agreed:
    """Raises Problem: 422 for a plan that is not there, was refused, or is another body's; 409 when the local model or
    the dataset changed since."""
    kept = await kept_plan(session, tenant=tenant, digest=digest)
    if kept is None:
        raise _at("/plan", problems.PLAN_NOT_FOUND, f"no plan {digest[:12]}…: make one with POST /v1/jobs:plan")
    body = deciding(spec)
    other = [name for name in DECIDES if body[name] != kept.spec.get(name)]
    if other:
        errors = [{"pointer": f"/{name}", "detail": "is not what was planned"} for name in other]
        raise Problem(problems.PLAN_MISMATCH, f"{' and '.join(other)}: not what was planned", errors=errors)
    if kept.refused:
        raise Problem(problems.PLAN_REFUSED, kept.refused[0]["detail"], errors=errors_of(list(kept.refused)))
    await _check_dataset(session, tenant=tenant, spec=spec, resolved=kept.resolved)
    await release(session)
    await _check_model(spec, kept.resolved, settings)
    pins = ("model_commit", "model_fingerprint", "dataset_commit")
    return Agreed({name: kept.resolved[name] for name in pins if kept.resolved.get(name)}, dict(kept.estimate))


async def _check_dataset(session: AsyncSession, *, tenant: str, spec: JobSpec, resolved: Mapping[str, Any]) -> None:
    if not spec.calibration.dataset.startswith(UPLOADED):
        return
    dataset = await uploaded_dataset(session, tenant=tenant, dataset_id=spec.calibration.dataset)
    if dataset is not None and dataset.sha256 != resolved.get("dataset_sha256"):
        raise _at("/calibration/dataset", problems.PLAN_OUTDATED, "the dataset holds other rows than were planned")


async def _check_model(spec: JobSpec, resolved: Mapping[str, Any], settings: Settings) -> None:
    planned = resolved.get("model_fingerprint")
    if planned is None:
        return
    try:
        found = await aside(lambda: inputs.read_model(spec.model, settings))
    except Unreadable as error:
        raise _at("/model/id", problems.PLAN_OUTDATED, f"the model cannot be read any more: {error}") from None
    if found is not None and found.fingerprint != planned:
        raise _at(
            "/model/id", problems.PLAN_OUTDATED, "the model's files have changed since it was planned: plan again"
        )


async def guard_creation(
    session: AsyncSession, *, tenant: str, spec: JobSpec, settings: Settings, storage: Storage
) -> Agreed:
    """The estimate of a job without a plan, where it costs no network, so not of a hub model. Nothing is pinned.
    Commits what ``session`` has done.

    Raises Problem 422 when every worker that is alive is too small for it. What else speaks against the job is left to
    the worker, which says it in the job's error.
    """
    if not spec.model.id.startswith(inputs.LOCAL):
        return NOTHING_AGREED
    dataset: Dataset | None = None
    if spec.calibration.dataset.startswith(UPLOADED):
        dataset = await uploaded_dataset(session, tenant=tenant, dataset_id=spec.calibration.dataset)
    fleet = await fleet_of(session, tenant=tenant, settings=settings)
    await release(session)
    try:
        model = await aside(lambda: inputs.read_model(spec.model, settings))
    except Unreadable:
        return NOTHING_AGREED
    refusals: list[Refusal] = []
    plan, fits = await estimated(fleet, spec, model, dataset, settings, storage, refusals)
    too_small = next((refusal for refusal in refusals if refusal.code == "insufficient_memory"), None)
    if too_small is not None:
        raise Problem(problems.INSUFFICIENT_MEMORY, too_small.message)
    if plan is None or model is None:
        return NOTHING_AGREED
    resolved = ResolvedInputs(
        model_commit=None,
        model_fingerprint=model.fingerprint,
        dataset_commit=None,
        dataset_sha256=dataset.sha256 if dataset else None,
    )
    return Agreed({}, estimate_to_keep(Planned(spec, resolved, plan, (), fits)))


def _at(pointer: str, kind: problems.ProblemType, detail: str) -> Problem:
    return Problem(kind, detail, errors=[{"pointer": pointer, "detail": detail}])
