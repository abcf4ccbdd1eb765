"""Forks: a job with the merged spec of another, which reuses that job's results where they match."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from sqlalchemy import cast, func
from sqlalchemy.dialects.postgresql import JSONPATH
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import of_job
from app.jobs.queries import get_job
from app.web.schemas import Strict
from core.contract.block_files import CAPTURED_INPUTS_FILES
from core.contract.spec import JobSpec
from core.ledger.tables import FinishedBlock, Job

MOST_OPTIONS = 64
DECIDES_NOTHING = {
    *("accept_if", "exports", "evaluation", "alias", "name", "labels", "timeout_s", "max_wait_s", "priority", "device")
}
"""Fields of a spec that do not change the result."""
BEFORE_THE_BLOCKS = ("model", "calibration", "options.samples", "options.seed", "options.vision")
"""Fields that the captured inputs depend on. ``quant_experts.run.fingerprints`` has the same list in its own terms."""


class ForkRequest(Strict):
    """Fields of a job that are to be other ones, merged as JSON merge patch (RFC 7396): objects field by field, and
    null takes away what the first job said."""

    model: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    scheme: str | None = None
    method: str | None = None
    options: dict[str, Any] | None = Field(default=None, max_length=MOST_OPTIONS)
    target: dict[str, Any] | None = None
    accept_if: dict[str, Any] | None = None
    exports: list[str] | None = None
    evaluation: dict[str, Any] | None = None
    name: str | None = None
    alias: str | None = None
    labels: dict[str, Any] | None = Field(default=None, max_length=MOST_OPTIONS)
    timeout_s: int | None = None
    max_wait_s: int | None = None
    priority: int | None = None
    device: str | None = None

    @property
    def changes(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True)


async def fork_spec(session: AsyncSession, *, tenant: str, job_id: str, request: ForkRequest) -> tuple[Job, JobSpec]:
    """The job and the spec of its fork. Raises Problem 404, and RequestValidationError for a spec that is not one."""
    parent = await get_job(session, tenant=tenant, job_id=job_id)
    # A job without a method version is older than the field.
    options = {"method_version": 1, **(parent.spec.get("options") or {})}
    document = merge({**requested_spec(parent), "options": options}, request.changes)
    try:
        return parent, JobSpec.model_validate(document)
    except ValidationError as error:
        errors = [{**item, "loc": ("body", *item["loc"])} for item in error.errors(include_url=False)]
        raise RequestValidationError(errors) from None


def requested_spec(job: Job) -> dict[str, Any]:
    """The job's spec with its fields outside of the spec, except the alias, which belongs to one job."""
    return {**job.spec, **{name: getattr(job, name) for name in ("max_wait_s", "priority", "device")}}


@dataclass(frozen=True)
class Reuse:
    """What a fork would reuse of the first job, on a worker of the same kind. ``changed``: fields that prevent more."""

    calibration: bool
    blocks: int
    changed: list[str]
    gone: bool
    """The first job has no files, or none any more."""


async def reuse_of(session: AsyncSession, *, parent: Job, spec: JobSpec) -> Reuse:
    """A forecast: the library decides by content, when a worker has the files."""
    names = func.jsonb_path_query_array(FinishedBlock.files, cast("$[*].name", JSONPATH))
    rows = (
        await session.execute(of_job(FinishedBlock, parent.id).order_by(FinishedBlock.block).with_only_columns(names))
    ).scalars()
    files = [set(row) for row in rows]
    blocks = sum(1 for _ in takewhile(lambda names: names - set(CAPTURED_INPUTS_FILES), files))
    captured_inputs = bool(files) and set(CAPTURED_INPUTS_FILES) <= files[0]
    changed = _changed(JobSpec.model_validate(parent.spec), _pinned(parent, spec))
    same_rows = not any(name in BEFORE_THE_BLOCKS for name in changed)
    return Reuse(
        calibration=captured_inputs and same_rows,
        blocks=blocks if not changed else 0,
        changed=changed,
        gone=not captured_inputs and not blocks,
    )


def _changed(first: JobSpec, fork: JobSpec) -> list[str]:
    """Pointers to fields that differ. Another method is one difference; its slots are not listed."""
    before, after = _computed(first), _computed(fork)
    differ = {name for name in before if before[name] != after[name]}
    if "method" in differ:
        slots = ("smoothing", "rounding", "reconstruction")
        differ -= {f"options.{slot}" for slot in slots if getattr(first.options, slot) == getattr(fork.options, slot)}
    return sorted(differ)


def _computed(spec: JobSpec) -> dict[str, Any]:
    """Pointer → value of every field that decides the result. A default counts as its value."""
    parts = spec.model_dump(mode="json", exclude={*DECIDES_NOTHING, "options"})
    return parts | {f"options.{name}": value for name, value in spec.options_in_full().items()}


def _pinned(parent: Job, spec: JobSpec) -> JobSpec:
    """``spec`` with the first job's model reference, where its revision is the commit that the first job resolved."""
    before = JobSpec.model_validate(parent.spec).model
    if spec.model.id == before.id and spec.model.revision == parent.progress.get("model_commit") is not None:
        return spec.model_copy(update={"model": before})
    return spec


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def pinned_commits(parent: Job, spec: JobSpec) -> dict[str, Any]:
    """The commits that the first job resolved, for the inputs that the fork shares with it."""
    before, after = JobSpec.model_validate(parent.spec), _pinned(parent, spec)
    pins: dict[str, Any] = {}
    if after.model == before.model:
        pins |= {name: parent.progress.get(name) for name in ("model_commit", "model_fingerprint")}
    if after.calibration.dataset == before.calibration.dataset:
        pins["dataset_commit"] = parent.progress.get("dataset_commit")
    if after.evaluation and before.evaluation and after.evaluation.dataset == before.evaluation.dataset:
        pins["evaluation_commit"] = parent.progress.get("evaluation_commit")
    return {name: value for name, value in pins.items() if value is not None}
