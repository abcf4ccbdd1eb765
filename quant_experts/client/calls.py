"""Every call of the API as data: method, path, what is sent, how the answer is read. Who sends it is the client."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from quant_experts.client import views

T = TypeVar("T")
View = TypeVar("View", bound=BaseModel)
Params = list[tuple[str, str | int | float | bool | None]]


@dataclass(frozen=True)
class Call(Generic[T]):
    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Params = field(default_factory=list)
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    """Carrying it out twice does no harm, so that it may be sent again when an answer was lost."""


def create_job(
    kind: type[View],
    *,
    model: str,
    calibration: str,
    scheme: str,
    revision: str | None = None,
    split: str | None = None,
    idempotency_key: str | None = None,
    **fields: Any,
) -> Call[View]:
    """``fields``: the rest of the body, as ``method``, ``options``, ``labels``; None is left out."""
    body = {
        "model": _given(id=model, revision=revision),
        "calibration": _given(dataset=calibration, split=split),
        "scheme": scheme,
        **_given(**fields),
    }
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return Call("POST", "/v1/jobs", _as(kind), json=body, headers=headers)


def get_job(kind: type[View], job_id: str) -> Call[View]:
    return Call("GET", _job(job_id), _as(kind))


def cancel_job(kind: type[View], job_id: str) -> Call[View]:
    return Call("POST", f"{_job(job_id)}/cancel", _as(kind))


def retry_job(kind: type[View], job_id: str) -> Call[View]:
    # The second of two would find the job queued and be refused.
    return Call("POST", f"{_job(job_id)}/retry", _as(kind), repeatable=False)


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
) -> Call[views.Page[View]]:
    """``label``: ``{"team": "vision"}``, or None as a value for any value."""
    params: Params = [("limit", page_size)]
    params += [("status", each) for each in status]
    params += [("label", key if value is None else f"{key}={value}") for key, value in (label or {}).items()]
    times = {"created_after": created_after, "created_before": created_before}
    params += [(name, moment.isoformat()) for name, moment in times.items() if moment is not None]
    params += [(name, value) for name, value in (("model", model), ("scheme", scheme)) if value is not None]
    return Call("GET", "/v1/jobs", _as(views.Page[kind]), params=params)  # type: ignore[valid-type]


def next_page(call: Call[views.Page[T]], page: views.Page[T]) -> Call[views.Page[T]] | None:
    if page.next_cursor is None:
        return None
    others = [entry for entry in call.params if entry[0] != "cursor"]
    return Call(call.method, call.path, call.read, params=[*others, ("cursor", page.next_cursor)])


def events(job_id: str, *, after: int = 0) -> Call[views.EventPage]:
    return Call("GET", events_path(job_id), _as(views.EventPage), params=[("after", after), ("limit", 1000)])


def events_path(job_id: str) -> str:
    return f"{_job(job_id)}/events"


def layers(job_id: str, *, after: int = -1) -> Call[views.LayerPage]:
    return Call("GET", f"{_job(job_id)}/layers", _as(views.LayerPage), params=[("after", after), ("limit", 100)])


def attempts(job_id: str) -> Call[list[views.AttemptView]]:
    return Call("GET", f"{_job(job_id)}/attempts", lambda response: _as(views.AttemptList)(response).data)


def artifacts(job_id: str) -> Call[list[views.ArtifactView]]:
    return Call("GET", f"{_job(job_id)}/artifacts", lambda response: _as(views.ArtifactList)(response).data)


def artifact_path(job_id: str, name: str) -> str:
    return f"{_job(job_id)}/artifacts/{quote(name)}"


def report(job_id: str) -> Call[dict[str, Any]]:
    return Call("GET", f"{_job(job_id)}/report", lambda response: dict(response.json()), params=[("format", "json")])


def report_page(job_id: str) -> Call[str]:
    return Call("GET", f"{_job(job_id)}/report", lambda response: response.text, params=[("format", "html")])


def upload() -> Call[views.DatasetView]:
    return Call("POST", "/v1/datasets", _as(views.DatasetView), repeatable=False)


def get_dataset(dataset_id: str) -> Call[views.DatasetView]:
    return Call("GET", _dataset(dataset_id), _as(views.DatasetView))


def list_datasets(*, sha256: str | None = None, page_size: int = 100) -> Call[views.Page[views.DatasetView]]:
    params: Params = [("limit", page_size), *([("sha256", sha256)] if sha256 is not None else [])]
    return Call("GET", "/v1/datasets", _as(views.Page[views.DatasetView]), params=params)


def delete_dataset(dataset_id: str) -> Call[None]:
    return Call("DELETE", _dataset(dataset_id), lambda response: None, repeatable=False)


def create_key(
    *, name: str, scopes: Sequence[str], expires_at: datetime | None, tenant: str | None
) -> Call[views.CreatedKey]:
    body = _given(name=name, scopes=list(scopes), expires_at=expires_at and expires_at.isoformat(), tenant=tenant)
    # A key whose answer was lost is lost: a second one would leave the first valid and unknown.
    return Call("POST", "/v1/keys", _as(views.CreatedKey), json=body, repeatable=False)


def list_keys(*, page_size: int = 100) -> Call[views.Page[views.KeyView]]:
    return Call("GET", "/v1/keys", _as(views.Page[views.KeyView]), params=[("limit", page_size)])


def revoke_key(key_id: str) -> Call[views.KeyView]:
    return Call("DELETE", f"/v1/keys/{quote(key_id, safe='')}", _as(views.KeyView))


def schemes() -> Call[views.Schemes]:
    return Call("GET", "/v1/schemes", _as(views.Schemes))


def workers() -> Call[list[views.WorkerView]]:
    return Call("GET", "/v1/workers", lambda response: _as(views.WorkerList)(response).data)


def _as(kind: type[View]) -> Callable[[httpx.Response], View]:
    return lambda response: kind.model_validate_json(response.content)


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _dataset(dataset_id: str) -> str:
    return f"/v1/datasets/{quote(dataset_id, safe='')}"


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
