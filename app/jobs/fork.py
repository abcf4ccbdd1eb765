"""A job like another one, with changes: the spec is merged, and what was computed is taken over where it fits."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import cast, func
from sqlalchemy.dialects.postgresql import JSONPATH
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import of_job
from app.jobs.queries import get_job
from core.contract.block_files import CALLS_FILES
from core.contract.spec import JobSpec
from core.ledger.tables import Job, Layer

MOST_OPTIONS = 64
DECIDES_NOTHING = {"accept_if", "alias", "name", "labels", "timeout_s", "max_wait_s", "priority", "device"}
"""Fields of a spec that change no byte of the result."""
BEFORE_THE_BLOCKS = ("model", "calibration", "options.samples", "options.seed", "options.vision")
"""What the calls of the language model depend on: ``quant_experts.run.reuse`` has the same list in its own terms."""


class ForkRequest(BaseModel):
    """Fields of a job that are to be other ones, merged as JSON merge patch (RFC 7396): objects field by field, and
    null takes away what the first job said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    scheme: str | None = None
    method: str | None = None
    options: dict[str, Any] | None = Field(default=None, max_length=MOST_OPTIONS)
    target: dict[str, Any] | None = None
    accept_if: dict[str, Any] | None = None
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


async def forked(session: AsyncSession, *, tenant: str, job_id: str, request: ForkRequest) -> tuple[Job, JobSpec]:
    """The job and the spec of its fork. Raises Problem 404, and RequestValidationError for a spec that is not one."""
    parent = await get_job(session, tenant=tenant, job_id=job_id)
    # A fork is read by the same defaults; a job without a version of the method is older than the field.
    options = {"method_version": 1, **(parent.spec.get("options") or {})}
    merged = merge({**asked_of(parent), "options": options}, request.changes)
    try:
        return parent, JobSpec.model_validate(merged)
    except ValidationError as error:
        errors = [{**item, "loc": ("body", *item["loc"])} for item in error.errors(include_url=False)]
        raise RequestValidationError(errors) from None


def asked_of(job: Job) -> dict[str, Any]:
    """The job's spec with what is kept beside it, but for the alias, which serves one job."""
    return {**job.spec, **{name: getattr(job, name) for name in ("max_wait_s", "priority", "device")}}


@dataclass(frozen=True)
class Takeover:
    """What a fork would find of the first job on a worker of the same kind. ``changed``: the fields of the spec that
    keep it from more."""

    calibration: bool
    blocks: int
    changed: list[str]
    gone: bool
    """The files of the first job are not there (any more, or yet)."""


async def takeover(session: AsyncSession, *, parent: Job, spec: JobSpec) -> Takeover:
    """As the library decides by content; for what can be known before a worker has the files."""
    names = func.jsonb_path_query_array(Layer.files, cast("$[*].name", JSONPATH))
    rows = (await session.execute(of_job(Layer, parent.id).order_by(Layer.block).with_only_columns(names))).scalars()
    files = [set(row) for row in rows]
    kept = sum(1 for _ in takewhile(lambda names: names - set(CALLS_FILES), files))
    calls = bool(files) and set(CALLS_FILES) <= files[0]
    changed = _changed(JobSpec.model_validate(parent.spec), _pinned(parent, spec))
    same_rows = not any(name in BEFORE_THE_BLOCKS for name in changed)
    return Takeover(
        calibration=calls and same_rows,
        blocks=kept if not changed else 0,
        changed=changed,
        gone=not calls and not kept,
    )


def _changed(first: JobSpec, fork: JobSpec) -> list[str]:
    """Pointers to what makes the fork another job. Of another method that is enough said: not which slots it brings."""
    before, after = _computed(first), _computed(fork)
    differ = {name for name in before if before[name] != after[name]}
    if "method" in differ:
        slots = ("smoothing", "rounding", "reconstruction")
        differ -= {f"options.{slot}" for slot in slots if getattr(first.options, slot) == getattr(fork.options, slot)}
    return sorted(differ)


def _computed(spec: JobSpec) -> dict[str, Any]:
    """Pointer → value of what decides the bytes of the result. A default that is written out is no other value."""
    parts = spec.model_dump(mode="json", exclude={*DECIDES_NOTHING, "options"})
    return parts | {f"options.{name}": value for name, value in spec.options_in_full().items()}


def _pinned(parent: Job, spec: JobSpec) -> JobSpec:
    """``spec``, with the first job's own word for its revision where it names the commit that this one meant."""
    before = JobSpec.model_validate(parent.spec).model
    if spec.model.id == before.id and spec.model.revision == parent.progress.get("model_commit") is not None:
        return spec.model_copy(update={"model": before})
    return spec


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def pins_of(parent: Job, spec: JobSpec) -> dict[str, Any]:
    """The commits that the first job found, as far as the fork names the same things: only then can it take over."""
    before, after = JobSpec.model_validate(parent.spec), _pinned(parent, spec)
    pins: dict[str, Any] = {}
    if after.model == before.model:
        pins |= {name: parent.progress.get(name) for name in ("model_commit", "model_fingerprint")}
    if after.calibration.dataset == before.calibration.dataset:
        pins["dataset_commit"] = parent.progress.get("dataset_commit")
    return {name: value for name, value in pins.items() if value is not None}
