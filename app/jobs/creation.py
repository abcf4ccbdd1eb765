"""Create a job: check its model and dataset, then write its row, first event and audit entry in one round trip."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb

from app.access.auth import Actor
from app.audit.service import Action, audit_entry
from app.datasets.queries import lock_usable_datasets
from app.db.pipeline import Statement, Transaction, columns_of
from app.jobs.rows import JobRow
from app.plans.evaluation import bounds_refusal
from app.pushes.service import run_of
from app.web import problems
from app.web.problems import Problem
from core import tracing
from core.contract.events import EventType
from core.contract.ids import new_id
from core.contract.local_model import NoLocalModel, local_directory
from core.contract.spec import JobSpec
from core.contract.versions import stored
from core.ledger import transitions
from core.logs import EXTRA
from core.settings import Settings
from quant_experts.spec.prefixes import LOCAL

CREATE = f"{transitions.CREATE} RETURNING {columns_of(JobRow)}"
FIRST_EVENT = f"""
INSERT INTO events (job_id, seq, type, data) VALUES (%(job_id)s, 1, '{EventType.CREATED}', %(data)s)
"""  # noqa: S608 -- every part is ours
"""Simpler than ``core.ledger.outbox``: the sequence number is 1, and no webhook subscribes to it."""
log = logging.getLogger(__name__)


async def create_job(
    transaction: Transaction,
    *,
    actor: Actor,
    spec: JobSpec,
    settings: Settings,
    progress: Mapping[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    forked_from: str | None = None,
    comparison_id: str | None = None,
) -> JobRow:
    """``progress``: commits that pin the inputs. ``plan``: the estimate. ``forked_from``, ``comparison_id``: jobs whose
    files this one may reuse. The caller has called ``admit``.

    Raises Problem 422 for a local model or an uploaded dataset that does not exist, and for an evaluation beyond the
    bounds of the service. The worker checks hub ids.
    """
    if spec.model.id.startswith(LOCAL):
        _check_local_model(spec.model.id, settings.model_root)
    if (refusal := bounds_refusal(spec, settings)) is not None:
        errors = [{"pointer": refusal.pointer, "detail": refusal.message}]
        raise Problem(problems.INVALID_REQUEST, refusal.message, errors=errors)
    fields, version = stored(spec)
    await lock_usable_datasets(transaction, tenant=actor.tenant, spec=fields)
    job_id = new_id("job")
    trace = tracing.current()
    trace.note({"qe.job.id": job_id, "qe.model": spec.model.id, "qe.scheme": spec.scheme})
    data = {"model": spec.model.id, "dataset": spec.calibration.dataset, "scheme": spec.scheme, "method": spec.method}
    data |= {"forked_from": forked_from} if forked_from else {}
    values = {
        "job_id": job_id,
        "tenant": actor.tenant,
        "name": spec.name,
        "alias": spec.alias,
        "labels": Jsonb(spec.labels),
        "spec": Jsonb(fields),
        "spec_version": version,
        "progress": Jsonb(dict(progress or {})),
        "plan": _or_null(plan),
        "forked_from": forked_from,
        "comparison_id": comparison_id,
        "model_id": spec.model.id,
        "method": spec.method,
        "scheme": spec.scheme,
        "trace_context": _or_null(trace.carrier),
        "max_wait_s": spec.max_wait_s,
        "priority": spec.priority,
        "device": spec.device,
        **_needs(plan),
    }
    ((job,), *_) = await transaction.run(
        Statement(CREATE, values, JobRow),
        Statement(FIRST_EVENT, {"job_id": job_id, "data": Jsonb(data)}),
        audit_entry(actor, Action.JOB_CREATED, job_id, {"model": spec.model.id, "scheme": spec.scheme}),
        *([run_of(job_id, tenant=actor.tenant)] if settings.mlflow_tracking_uri is not None else []),
    )
    assert isinstance(job, JobRow)
    # Links the request id to the job id in the logs.
    log.info("job queued", extra={EXTRA: {"job_id": job_id, "tenant": actor.tenant, "model": spec.model.id}})
    return job


def _needs(plan: Mapping[str, Any] | None) -> dict[str, int | None]:
    """Memory and disk that a worker needs, from the plan."""
    memory = (plan or {}).get("memory", {})
    cpu, cuda = memory.get("cpu", {}), memory.get("cuda", {})
    return {
        "needs_host_cpu": cpu.get("host"),
        "needs_host_cuda": cuda.get("host"),
        "needs_device": cuda.get("device"),
        "needs_disk": (plan or {}).get("disk_bytes"),
    }


def _or_null(value: Mapping[str, Any] | None) -> Jsonb | None:
    return None if value is None else Jsonb(dict(value))


def _check_local_model(model_id: str, root: Path | None) -> None:
    """Raises Problem 422 when the service sees its local models and this one is not among them."""
    if root is not None and not root.is_dir():
        return  # the root is mounted only at the worker, which checks it
    try:
        local_directory(model_id, root)
    except NoLocalModel as error:
        detail = str(error)
        raise Problem(problems.MODEL_NOT_FOUND, detail, errors=[{"pointer": "/model/id", "detail": detail}]) from None
