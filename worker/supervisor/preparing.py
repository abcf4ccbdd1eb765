"""Everything that the runner reads, on local disk, and the file that tells it so."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.settings import Settings
from quant_experts.spec.prefixes import LOCAL, UPLOADED
from worker.ledger import attempts as ledger
from worker.ledger import claims
from worker.runner import protocol
from worker.supervisor import fetch, hub_download
from worker.supervisor.attempt import Attempt
from worker.supervisor.fenced_writer import FencedWriter


def prepare(attempt: Attempt) -> protocol.RunnerJob:
    """Bring model and rows, each at the commit that the first attempt resolved. Raises FetchFailed, Draining, and what
    the lease raises."""
    context, claim, spec, writer = attempt.context, attempt.claim, attempt.spec, attempt.writer
    settings, directory = attempt.settings, attempt.directory
    access = partial(_access, writer, claim, settings)
    hub = hub_download.Hub(settings, attempt.lease, attempt.log, context.draining, access)
    commit: str | None = None
    if spec.model.id.startswith(LOCAL):
        model = fetch.local_model(spec.model.id, settings.model_root)
        fetch.check_fingerprint(spec.model.id, model, claim.progress.get("model_fingerprint"))
    else:
        # An attempt that goes on must go on with the same weights, wherever the branch points now.
        revision = claim.progress.get("model_commit") or spec.model.revision
        model, commit = hub.bring("model", spec.model.id, revision, partial(_pin, writer, "model_commit"))

    def rows_of(dataset: str, name: str, pinned: str) -> str:
        if dataset.startswith(UPLOADED):
            row = writer.read(ledger.dataset, tenant=claim.tenant, dataset_id=dataset)
            return str(fetch.uploaded_rows(dataset, row, attempt.storage, directory, name=name))
        return str(hub.bring("dataset", dataset, claim.progress.get(pinned), partial(_pin, writer, pinned))[0])

    rows = rows_of(spec.calibration.dataset, "calibration", "dataset_commit")
    evaluation = _given(spec.evaluation) if spec.evaluation else None
    if evaluation is not None and "dataset" in evaluation:
        evaluation["dataset"] = rows_of(evaluation["dataset"], "evaluation", "evaluation_commit")
    return protocol.RunnerJob(
        model=str(model),
        model_id=spec.model.id,
        model_commit=commit,
        calibration=rows,
        split=spec.calibration.split,
        output=str(directory / "output"),
        work=str(attempt.work),
        scheme=spec.scheme,
        method=spec.method,
        options=_given(spec.options),
        target=_given(spec.target) if spec.target else None,
        confinement=settings.runner_confinement,
        accept_if=_given(spec.accept_if) if spec.accept_if else None,
        exports=spec.exports or [],
        evaluation=evaluation,
    )


def _access(writer: FencedWriter, claim: claims.Claim, settings: Settings) -> hub_download.Access:
    return hub_download.Access.of(claim.tenant, writer.read(ledger.hub_token, tenant=claim.tenant), settings)


def _given(part: BaseModel) -> dict[str, Any]:
    """What the client said; the library has the defaults."""
    return part.model_dump(mode="json", exclude_none=True)


def _pin(writer: FencedWriter, name: str, commit: str) -> None:
    writer.write(ledger.set_progress, {name: commit})


def write_job(directory: Path, job: protocol.RunnerJob) -> Path:
    path = directory / "job.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(job.model_dump(mode="json"), file)
    return path
