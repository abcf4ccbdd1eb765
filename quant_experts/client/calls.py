"""Every call of the API as data: method, path, what is sent, how the answer is read. Who sends it is the client."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from quant_experts.client import views
from quant_experts.client.errors import ClientError

T = TypeVar("T")
View = TypeVar("View")
SECONDS_OF_CHECKING = 900.0
"""Before the answer to an upload the service reads every row."""
SECONDS_OF_COUNTING = 180.0
"""Of a model's tokens, in all rows of a dataset."""
Params = list[tuple[str, str | int | float | bool | None]]


@dataclass(frozen=True)
class Call(Generic[T]):
    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Params = field(default_factory=list)
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    """A body that is no JSON."""
    file: tuple[str, bytes] | None = None
    """Name and content of the one file of a form."""
    form: Mapping[str, str] = field(default_factory=dict)
    """What the form has beside its file."""
    seconds: float | None = None
    """For an answer that takes longer than others."""
    on_sent: Callable[[int], None] | None = None
    """Hears how many bytes of the body have left, from 0 on at each attempt."""
    repeatable: bool = True
    """Carrying it out twice does no harm, so that it may be sent again when an answer was lost."""

    def __post_init__(self) -> None:
        """Raises ClientError for a number that JSON cannot say; which one it is httpx would not tell."""
        _check_finite(self.json, "")

    def sent(self) -> dict[str, Any]:
        """As arguments of ``httpx``'s ``request``, beside method and path."""
        given: dict[str, Any] = {"params": self.params, "headers": self.headers}
        if self.json is not None:
            given["json"] = self.json
        if self.content is not None:
            given["content"] = self.content
        if self.file is not None:
            given["files"] = {"file": (*self.file, "application/octet-stream")}
            given["data"] = self.form
        if self.seconds is not None:
            given["timeout"] = httpx.Timeout(self.seconds, connect=10.0)
        return given


def create_job(
    kind: type[View], fields: Mapping[str, Any], *, plan: str | None = None, idempotency_key: str | None = None
) -> Call[View]:
    """``fields``: the arguments that ``jobs.JobFields`` names, and any that the service knows; None is left out."""
    body = {**job_body(**fields), **_given(plan=plan)}
    return Call("POST", "/v1/jobs", _as(kind), json=body, headers=_once(idempotency_key))


def plan_job(kind: type[View], fields: Mapping[str, Any]) -> Call[View]:
    return Call("POST", "/v1/jobs:plan", _as(kind), json=job_body(**fields))


def kept_plan(digest: str) -> Call[views.KeptPlanView]:
    return Call("GET", f"/v1/plans/{_id(digest)}", _as(views.KeptPlanView))


def job_body(
    *,
    model: str,
    calibration: str | views.DatasetView,
    scheme: str,
    revision: str | None = None,
    split: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    return {**_inputs(model, calibration, revision, split), "scheme": scheme, **_given(**fields)}


def fork_job(
    kind: type[View], job_id: str, changes: Mapping[str, Any], *, idempotency_key: str | None = None
) -> Call[View]:
    """``changes``: a JSON merge patch, in which None takes away."""
    return Call("POST", f"{_job(job_id)}/fork", _as(kind), json=dict(changes), headers=_once(idempotency_key))


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


def delete_job(job_id: str) -> Call[None]:
    return Call("DELETE", _job(job_id), _nothing, repeatable=False)


def delete_artifacts(job_id: str) -> Call[None]:
    return Call("DELETE", f"{_job(job_id)}/artifacts", _nothing)


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
) -> Call[views.Deleted]:
    times = {"created_after": created_after, "created_before": created_before, "finished_before": finished_before}
    body = {
        "ids": list(ids),
        "status": list(status),
        "label": [key if value is None else f"{key}={value}" for key, value in (label or {}).items()],
        "model": model,
        "scheme": scheme,
        **{name: moment and moment.isoformat() for name, moment in times.items()},
    }
    given = {name: value for name, value in body.items() if value not in (None, [])}
    return Call("POST", "/v1/jobs:delete", _as(views.Deleted), json=given)


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


def log(job_id: str, *, tail: int) -> Call[str]:
    return Call("GET", f"{_job(job_id)}/logs", lambda response: response.text, params=[("tail", tail)])


def artifacts(job_id: str) -> Call[list[views.ArtifactView]]:
    return Call("GET", f"{_job(job_id)}/artifacts", lambda response: _as(views.ArtifactList)(response).data)


def artifact_path(job_id: str, name: str) -> str:
    return f"{_job(job_id)}/artifacts/{quote(name)}"


def report(job_id: str) -> Call[dict[str, Any]]:
    return Call("GET", f"{_job(job_id)}/report", lambda response: dict(response.json()), params=[("format", "json")])


def report_page(job_id: str) -> Call[str]:
    return Call("GET", f"{_job(job_id)}/report", lambda response: response.text, params=[("format", "html")])


def upload(name: str, content: bytes, *, expires_at: datetime | None) -> Call[views.DatasetView]:
    return Call(
        "POST",
        "/v1/datasets",
        _as(views.DatasetView),
        file=(name, content),
        form=_given(expires_at=expires_at and expires_at.isoformat()),
        repeatable=False,
        seconds=SECONDS_OF_CHECKING,
    )


def begin_upload(*, name: str) -> Call[views.UploadView]:
    # One whose answer was lost holds nothing and is dropped after a day.
    return Call("POST", "/v1/datasets/uploads", _as(views.UploadView), json={"name": name})


def get_upload(upload_id: str) -> Call[views.UploadView]:
    return Call("GET", _upload(upload_id), _as(views.UploadView))


def put_part(upload_id: str, number: int, content: bytes) -> Call[views.PartView]:
    headers = {"Content-Type": "application/octet-stream"}
    path = f"{_upload(upload_id)}/parts/{number}"
    return Call("PUT", path, _as(views.PartView), content=content, headers=headers)


def complete_upload(upload_id: str, sha256: str, *, expires_at: datetime | None) -> Call[views.DatasetView]:
    path = f"{_upload(upload_id)}/complete"
    body = _given(sha256=sha256, expires_at=expires_at and expires_at.isoformat())
    return Call("POST", path, _as(views.DatasetView), json=body, repeatable=False, seconds=SECONDS_OF_CHECKING)


def abort_upload(upload_id: str) -> Call[None]:
    return Call("DELETE", _upload(upload_id), _nothing)


def get_dataset(dataset_id: str) -> Call[views.DatasetView]:
    return Call("GET", _dataset(dataset_id), _as(views.DatasetView))


def list_datasets(*, sha256: str | None = None, page_size: int = 100) -> Call[views.Page[views.DatasetView]]:
    params: Params = [("limit", page_size), *([("sha256", sha256)] if sha256 is not None else [])]
    return Call("GET", "/v1/datasets", _as(views.Page[views.DatasetView]), params=params)


def change_dataset(dataset_id: str, *, expires_at: datetime | None) -> Call[views.DatasetView]:
    body = {"expires_at": expires_at and expires_at.isoformat()}
    return Call("PATCH", _dataset(dataset_id), _as(views.DatasetView), json=body)


def dataset_rows(dataset_id: str, *, after: int = 0) -> Call[views.RowPage]:
    params: Params = [("after", after), ("limit", 20)]
    return Call("GET", f"{_dataset(dataset_id)}/rows", _as(views.RowPage), params=params)


def dataset_image(dataset_id: str, row: int, index: int) -> Call[bytes]:
    return Call("GET", f"{_dataset(dataset_id)}/rows/{row}/images/{index}", lambda response: response.content)


def dataset_audio(dataset_id: str, row: int, index: int) -> Call[bytes]:
    return Call("GET", f"{_dataset(dataset_id)}/rows/{row}/audio/{index}", lambda response: response.content)


def dataset_statistics(
    dataset_id: str, *, model: str | None = None, revision: str | None = None
) -> Call[views.FiguresView]:
    params: Params = list(_given(model=model, revision=revision).items())
    return Call(
        "GET",
        f"{_dataset(dataset_id)}/statistics",
        _as(views.FiguresView),
        params=params,
        seconds=SECONDS_OF_COUNTING,
    )


def delete_dataset(dataset_id: str) -> Call[None]:
    return Call("DELETE", _dataset(dataset_id), _nothing, repeatable=False)


def create_comparison(
    kind: type[View],
    *,
    model: str,
    calibration: str | views.DatasetView,
    revision: str | None,
    split: str | None,
    idempotency_key: str | None,
    **fields: Any,
) -> Call[View]:
    body = {**_inputs(model, calibration, revision, split), **_given(**fields)}
    return Call("POST", "/v1/comparisons", _as(kind), json=body, headers=_once(idempotency_key))


def get_comparison(kind: type[View], comparison_id: str) -> Call[View]:
    return Call("GET", _comparison(comparison_id), _as(kind))


def list_comparisons(kind: type[View], *, page_size: int = 100) -> Call[views.Page[View]]:
    params: Params = [("limit", page_size)]
    return Call("GET", "/v1/comparisons", _as(views.Page[kind]), params=params)  # type: ignore[valid-type]


def cancel_comparison(kind: type[View], comparison_id: str) -> Call[View]:
    return Call("POST", f"{_comparison(comparison_id)}/cancel", _as(kind))


def delete_comparison(comparison_id: str) -> Call[None]:
    return Call("DELETE", _comparison(comparison_id), _nothing, repeatable=False)


def comparison_plot(comparison_id: str) -> Call[str]:
    return Call("GET", f"{_comparison(comparison_id)}/plot", lambda response: response.text)


def create_webhook(
    *, url: str, event_types: Sequence[str] | None, description: str | None
) -> Call[views.WebhookWithSecret]:
    # As with a key: a second one would leave the first valid, with a secret that nobody knows.
    body = _given(url=url, event_types=event_types and list(event_types), description=description)
    return Call("POST", "/v1/webhooks", _as(views.WebhookWithSecret), json=body, repeatable=False)


def get_webhook(webhook_id: str) -> Call[views.WebhookView]:
    return Call("GET", _webhook(webhook_id), _as(views.WebhookView))


def list_webhooks(*, page_size: int = 100) -> Call[views.Page[views.WebhookView]]:
    return Call("GET", "/v1/webhooks", _as(views.Page[views.WebhookView]), params=[("limit", page_size)])


def change_webhook(webhook_id: str, **changes: Any) -> Call[views.WebhookView]:
    return Call("PATCH", _webhook(webhook_id), _as(views.WebhookView), json=_given(**changes))


def rotate_secret(webhook_id: str, *, keep_previous_s: int | None) -> Call[views.WebhookWithSecret]:
    # A second rotation would void the secret that receivers hold.
    path = f"{_webhook(webhook_id)}/rotate-secret"
    body = _given(keep_previous_s=keep_previous_s)
    return Call("POST", path, _as(views.WebhookWithSecret), json=body, repeatable=False)


def ping_webhook(webhook_id: str) -> Call[views.DeliveryView]:
    return Call("POST", f"{_webhook(webhook_id)}/ping", _as(views.DeliveryView), repeatable=False)


def delete_webhook(webhook_id: str) -> Call[None]:
    return Call("DELETE", _webhook(webhook_id), _nothing, repeatable=False)


def list_deliveries(
    webhook_id: str, *, status: str | None, page_size: int = 100
) -> Call[views.Page[views.DeliveryView]]:
    params: Params = [("limit", page_size), *([("status", status)] if status is not None else [])]
    return Call("GET", f"{_webhook(webhook_id)}/deliveries", _as(views.Page[views.DeliveryView]), params=params)


def get_delivery(webhook_id: str, delivery_id: str) -> Call[views.DeliveryDetail]:
    return Call("GET", _delivery(webhook_id, delivery_id), _as(views.DeliveryDetail))


def redeliver(webhook_id: str, delivery_id: str) -> Call[views.DeliveryView]:
    path = f"{_delivery(webhook_id, delivery_id)}/redeliver"
    return Call("POST", path, _as(views.DeliveryView), repeatable=False)


def create_key(
    *, name: str, scopes: Sequence[str], expires_at: datetime | None, tenant: str | None
) -> Call[views.CreatedKey]:
    body = _given(name=name, scopes=list(scopes), expires_at=expires_at and expires_at.isoformat(), tenant=tenant)
    # A key whose answer was lost is lost: a second one would leave the first valid and unknown.
    return Call("POST", "/v1/keys", _as(views.CreatedKey), json=body, repeatable=False)


def list_keys(*, tenant: str | None = None, page_size: int = 100) -> Call[views.Page[views.KeyView]]:
    params: Params = [("limit", page_size), *_of_tenant(tenant)]
    return Call("GET", "/v1/keys", _as(views.Page[views.KeyView]), params=params)


def rotate_key(key_id: str, *, keep_previous_s: int | None, tenant: str | None) -> Call[views.CreatedKey]:
    # As with a new key: one whose answer was lost would be valid and unknown.
    path, body = f"{_key(key_id)}/rotate", _given(keep_previous_s=keep_previous_s)
    return Call("POST", path, _as(views.CreatedKey), params=_of_tenant(tenant), json=body, repeatable=False)


def revoke_key(key_id: str, *, tenant: str | None) -> Call[views.KeyView]:
    return Call("DELETE", _key(key_id), _as(views.KeyView), params=_of_tenant(tenant))


def schemes() -> Call[views.Schemes]:
    return Call("GET", "/v1/schemes", _as(views.Schemes))


def models() -> Call[views.ModelList]:
    return Call("GET", "/v1/models", _as(views.ModelList))


def workers() -> Call[list[views.WorkerView]]:
    return Call("GET", "/v1/workers", lambda response: _as(views.WorkerList)(response).data)


def usage(*, since: datetime | None, until: datetime | None, by: str) -> Call[views.Usage]:
    span = _given(since=since and since.isoformat(), until=until and until.isoformat(), by=by)
    return Call("GET", "/v1/usage", _as(views.Usage), params=list(span.items()))


def retention() -> Call[views.RetentionView]:
    return Call("GET", "/v1/retention", _as(views.RetentionView))


def set_retention(changes: Mapping[str, int | None]) -> Call[views.RetentionView]:
    return Call("PATCH", "/v1/retention", _as(views.RetentionView), json=dict(changes))


def hub_token() -> Call[views.HubTokenView]:
    return Call("GET", "/v1/hub-token", _as(views.HubTokenView))


def set_hub_token(token: str) -> Call[views.HubTokenView]:
    return Call("PUT", "/v1/hub-token", _as(views.HubTokenView), json={"token": token})


def delete_hub_token() -> Call[views.HubTokenView]:
    return Call("DELETE", "/v1/hub-token", _as(views.HubTokenView))


def _as(kind: type[View]) -> Callable[[httpx.Response], View]:
    assert issubclass(kind, BaseModel)
    return lambda response: kind.model_validate_json(response.content)


def _job(job_id: str) -> str:
    return f"/v1/jobs/{_id(job_id)}"


def _comparison(comparison_id: str) -> str:
    return f"/v1/comparisons/{_id(comparison_id)}"


def _upload(upload_id: str) -> str:
    return f"/v1/datasets/uploads/{_id(upload_id)}"


def _webhook(webhook_id: str) -> str:
    return f"/v1/webhooks/{_id(webhook_id)}"


def _delivery(webhook_id: str, delivery_id: str) -> str:
    return f"{_webhook(webhook_id)}/deliveries/{_id(delivery_id)}"


def _key(key_id: str) -> str:
    return f"/v1/keys/{_id(key_id)}"


def _id(named: str) -> str:
    """As a part of a path. Raises ClientError for what would be another path: a shell variable that is not set."""
    if named.strip(".") == "":
        raise ClientError(f"{named!r} is no id")
    return quote(named, safe="")


def _of_tenant(tenant: str | None) -> Params:
    return [] if tenant is None else [("tenant", tenant)]


def _inputs(
    model: str, calibration: str | views.DatasetView, revision: str | None, split: str | None
) -> dict[str, Any]:
    dataset = calibration if isinstance(calibration, str) else calibration.id
    return {"model": _given(id=model, revision=revision), "calibration": _given(dataset=dataset, split=split)}


def _once(idempotency_key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}


def _check_finite(value: Any, pointer: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ClientError(f"{pointer} is {value}: only finite numbers can be sent")
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_finite(part, f"{pointer}/{name}")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            _check_finite(part, f"{pointer}/{index}")


def _nothing(response: httpx.Response) -> None:
    return None


def _dataset(dataset_id: str) -> str:
    return f"/v1/datasets/{_id(dataset_id)}"


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
