"""Requests about jobs and plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from quant_experts.client.requests.base import (
    Params,
    Request,
    View,
    idempotency_header,
    inputs,
    path_part,
    read_as,
    read_nothing,
    with_ids,
    without_none,
)
from quant_experts.client.views.base import Page
from quant_experts.client.views.datasets import DatasetView
from quant_experts.client.views.jobs import (
    ArtifactList,
    ArtifactView,
    AttemptList,
    AttemptView,
    Deleted,
    EventPage,
    LayerPage,
)
from quant_experts.client.views.plans import KeptPlanView


def create_job(
    kind: type[View], fields: Mapping[str, Any], *, plan: str | None = None, idempotency_key: str | None = None
) -> Request[View]:
    """``fields``: the arguments that ``jobs.JobFields`` names, and any that the service knows; None is left out."""
    body = {**job_body(**fields), **without_none(plan=plan)}
    return Request("POST", "/v1/jobs", read_as(kind), json=body, headers=idempotency_header(idempotency_key))


def plan_job(kind: type[View], fields: Mapping[str, Any]) -> Request[View]:
    return Request("POST", "/v1/jobs:plan", read_as(kind), json=job_body(**fields))


def stored_plan(digest: str) -> Request[KeptPlanView]:
    return Request("GET", f"/v1/plans/{path_part(digest)}", read_as(KeptPlanView))


def job_body(
    *,
    model: str,
    calibration: str | DatasetView,
    scheme: str,
    revision: str | None = None,
    split: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    return {**inputs(model, calibration, revision, split), "scheme": scheme, **without_none(**with_ids(fields))}


def fork_job(
    kind: type[View], job_id: str, changes: Mapping[str, Any], *, idempotency_key: str | None = None
) -> Request[View]:
    """``changes``: a JSON merge patch, in which None takes away."""
    return Request(
        "POST",
        f"{_job(job_id)}/fork",
        read_as(kind),
        json=with_ids(changes),
        headers=idempotency_header(idempotency_key),
    )


def get_job(kind: type[View], job_id: str) -> Request[View]:
    return Request("GET", _job(job_id), read_as(kind))


def cancel_job(kind: type[View], job_id: str) -> Request[View]:
    return Request("POST", f"{_job(job_id)}/cancel", read_as(kind))


def retry_job(kind: type[View], job_id: str) -> Request[View]:
    # The second of two would find the job queued and be refused.
    return Request("POST", f"{_job(job_id)}/retry", read_as(kind), repeatable=False)


def list_jobs(
    kind: type[View],
    *,
    status: Sequence[str] = (),
    label: Mapping[str, str | None] | None = None,
    model: str | None = None,
    scheme: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    page_size: int = 100,
) -> Request[Page[View]]:
    """``label``: ``{"team": "vision"}``, or None as a value for any value."""
    params: Params = [("limit", page_size)]
    params += [("status", each) for each in status]
    params += [("label", each) for each in _labels(label)]
    times = {"created_after": created_after, "created_before": created_before}
    params += [(name, moment.isoformat()) for name, moment in times.items() if moment is not None]
    params += [(name, value) for name, value in (("model", model), ("scheme", scheme)) if value is not None]
    return Request("GET", "/v1/jobs", read_as(Page[kind]), params=params)  # type: ignore[valid-type]


def delete_job(job_id: str) -> Request[None]:
    return Request("DELETE", _job(job_id), read_nothing, repeatable=False)


def delete_artifacts(job_id: str) -> Request[None]:
    return Request("DELETE", f"{_job(job_id)}/artifacts", read_nothing)


def delete_jobs(
    *,
    ids: Sequence[str] = (),
    status: Sequence[str] = (),
    label: Mapping[str, str | None] | None = None,
    model: str | None = None,
    scheme: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    finished_before: datetime | None = None,
) -> Request[Deleted]:
    times = {"created_after": created_after, "created_before": created_before, "finished_before": finished_before}
    body = {
        "ids": list(ids),
        "status": list(status),
        "label": _labels(label),
        "model": model,
        "scheme": scheme,
        **{name: moment and moment.isoformat() for name, moment in times.items()},
    }
    body = {name: value for name, value in body.items() if value not in (None, [])}
    return Request("POST", "/v1/jobs:delete", read_as(Deleted), json=body)


def events(job_id: str, *, after: int = 0) -> Request[EventPage]:
    return Request("GET", events_path(job_id), read_as(EventPage), params=[("after", after), ("limit", 1000)])


def events_path(job_id: str) -> str:
    return f"{_job(job_id)}/events"


def layers(job_id: str, *, after: int = -1) -> Request[LayerPage]:
    return Request("GET", f"{_job(job_id)}/layers", read_as(LayerPage), params=[("after", after), ("limit", 100)])


def attempts(job_id: str) -> Request[list[AttemptView]]:
    return Request("GET", f"{_job(job_id)}/attempts", lambda response: read_as(AttemptList)(response).data)


def log(job_id: str, *, tail: int) -> Request[str]:
    return Request("GET", f"{_job(job_id)}/logs", lambda response: response.text, params=[("tail", tail)])


def artifacts(job_id: str) -> Request[list[ArtifactView]]:
    return Request("GET", f"{_job(job_id)}/artifacts", lambda response: read_as(ArtifactList)(response).data)


def artifact_path(job_id: str, name: str) -> str:
    return f"{_job(job_id)}/artifacts/{quote(name)}"


def report(job_id: str) -> Request[dict[str, Any]]:
    return Request("GET", f"{_job(job_id)}/report", lambda response: dict(response.json()), params=[("format", "json")])


def report_page(job_id: str) -> Request[str]:
    return Request("GET", f"{_job(job_id)}/report", lambda response: response.text, params=[("format", "html")])


def _job(job_id: str) -> str:
    return f"/v1/jobs/{path_part(job_id)}"


def _labels(label: Mapping[str, str | None] | None) -> list[str]:
    return [key if value is None else f"{key}={value}" for key, value in (label or {}).items()]
