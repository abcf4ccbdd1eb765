"""One request of the API as data: method, path, body, and how its answer is read."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from quant_experts.client.errors import ClientError
from quant_experts.client.views.base import Page
from quant_experts.client.views.datasets import DatasetView

T = TypeVar("T")
View = TypeVar("View")
Params = list[tuple[str, str | int | float | bool | None]]


@dataclass(frozen=True)
class Request(Generic[T]):
    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Params = field(default_factory=list)
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    """A body other than JSON."""
    file: tuple[str, bytes] | None = None
    """Name and content of the one file of a form."""
    form: Mapping[str, str] = field(default_factory=dict)
    """Fields of the form beside its file."""
    seconds: float | None = None
    """Timeout for a slow answer; None: the client's."""
    on_sent: Callable[[int], None] | None = None
    """Called with the number of sent bytes of the body, from 0 on at each attempt."""
    repeatable: bool = True
    """The request is idempotent: it may be sent again when its answer was lost."""

    def __post_init__(self) -> None:
        """Raises ClientError, with the pointer, for a number that JSON cannot represent."""
        _check_finite(self.json, "")

    def arguments(self) -> dict[str, Any]:
        """For ``httpx.Client.build_request``, beside method and path."""
        arguments: dict[str, Any] = {"params": self.params, "headers": self.headers}
        if self.json is not None:
            arguments["json"] = self.json
        if self.content is not None:
            arguments["content"] = self.content
        if self.file is not None:
            arguments["files"] = {"file": (*self.file, "application/octet-stream")}
            arguments["data"] = self.form
        if self.seconds is not None:
            arguments["timeout"] = httpx.Timeout(self.seconds, connect=10.0)
        return arguments


def next_page(request: Request[Page[T]], page: Page[T]) -> Request[Page[T]] | None:
    if page.next_cursor is None:
        return None
    others = [entry for entry in request.params if entry[0] != "cursor"]
    return Request(request.method, request.path, request.read, params=[*others, ("cursor", page.next_cursor)])


def read_as(kind: type[View]) -> Callable[[httpx.Response], View]:
    assert issubclass(kind, BaseModel)
    return lambda response: kind.model_validate_json(response.content)


def path_part(name: str) -> str:
    """An id as a segment of a path. Raises ClientError for an empty one, as of an unset shell variable."""
    if name.strip(".") == "":
        raise ClientError(f"{name!r} is not an id")
    return quote(name, safe="")


def inputs(model: str, calibration: str | DatasetView, revision: str | None, split: str | None) -> dict[str, Any]:
    dataset = calibration if isinstance(calibration, str) else calibration.id
    return {
        "model": without_none(id=model, revision=revision),
        "calibration": without_none(dataset=dataset, split=split),
    }


def with_ids(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields``, in which an evaluation names a dataset by its id, also where it was given as a view."""
    evaluation = fields.get("evaluation")
    if not isinstance(evaluation, Mapping) or not isinstance(evaluation.get("dataset"), DatasetView):
        return dict(fields)
    return {**fields, "evaluation": {**evaluation, "dataset": evaluation["dataset"].id}}


def idempotency_header(idempotency_key: str | None) -> dict[str, str]:
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


def read_nothing(response: httpx.Response) -> None:
    return None


def without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
