"""Requests about datasets and uploads in parts."""

from __future__ import annotations

from datetime import datetime

from quant_experts.client.requests.base import Params, Request, path_part, read_as, read_nothing, without_none
from quant_experts.client.views.base import Page
from quant_experts.client.views.datasets import DatasetView, FiguresView, PartView, RowPage, UploadView

SECONDS_OF_CHECKING = 900.0
"""Before the answer to an upload the service reads every row."""
SECONDS_OF_COUNTING = 180.0
"""Before its answer the service counts a model's tokens in all rows of a dataset."""


def upload(name: str, content: bytes, *, expires_at: datetime | None) -> Request[DatasetView]:
    return Request(
        "POST",
        "/v1/datasets",
        read_as(DatasetView),
        file=(name, content),
        form=without_none(expires_at=expires_at and expires_at.isoformat()),
        repeatable=False,
        seconds=SECONDS_OF_CHECKING,
    )


def begin_upload(*, name: str) -> Request[UploadView]:
    # One whose answer was lost holds nothing and is dropped after a day.
    return Request("POST", "/v1/datasets/uploads", read_as(UploadView), json={"name": name})


def get_upload(upload_id: str) -> Request[UploadView]:
    return Request("GET", _upload(upload_id), read_as(UploadView))


def put_part(upload_id: str, number: int, content: bytes) -> Request[PartView]:
    headers = {"Content-Type": "application/octet-stream"}
    path = f"{_upload(upload_id)}/parts/{number}"
    return Request("PUT", path, read_as(PartView), content=content, headers=headers)


def complete_upload(upload_id: str, sha256: str, *, expires_at: datetime | None) -> Request[DatasetView]:
    path = f"{_upload(upload_id)}/complete"
    body = without_none(sha256=sha256, expires_at=expires_at and expires_at.isoformat())
    return Request("POST", path, read_as(DatasetView), json=body, repeatable=False, seconds=SECONDS_OF_CHECKING)


def abort_upload(upload_id: str) -> Request[None]:
    return Request("DELETE", _upload(upload_id), read_nothing)


def get_dataset(dataset_id: str) -> Request[DatasetView]:
    return Request("GET", _dataset(dataset_id), read_as(DatasetView))


def list_datasets(*, sha256: str | None = None, page_size: int = 100) -> Request[Page[DatasetView]]:
    params: Params = [("limit", page_size), *([("sha256", sha256)] if sha256 is not None else [])]
    return Request("GET", "/v1/datasets", read_as(Page[DatasetView]), params=params)


def change_dataset(dataset_id: str, *, expires_at: datetime | None) -> Request[DatasetView]:
    body = {"expires_at": expires_at and expires_at.isoformat()}
    return Request("PATCH", _dataset(dataset_id), read_as(DatasetView), json=body)


def dataset_rows(dataset_id: str, *, after: int = 0) -> Request[RowPage]:
    params: Params = [("after", after), ("limit", 20)]
    return Request("GET", f"{_dataset(dataset_id)}/rows", read_as(RowPage), params=params)


def dataset_image(dataset_id: str, row: int, index: int) -> Request[bytes]:
    return Request("GET", f"{_dataset(dataset_id)}/rows/{row}/images/{index}", lambda response: response.content)


def dataset_audio(dataset_id: str, row: int, index: int) -> Request[bytes]:
    return Request("GET", f"{_dataset(dataset_id)}/rows/{row}/audio/{index}", lambda response: response.content)


def dataset_statistics(
    dataset_id: str, *, model: str | None = None, revision: str | None = None
) -> Request[FiguresView]:
    params: Params = list(without_none(model=model, revision=revision).items())
    return Request(
        "GET",
        f"{_dataset(dataset_id)}/statistics",
        read_as(FiguresView),
        params=params,
        seconds=SECONDS_OF_COUNTING,
    )


def delete_dataset(dataset_id: str) -> Request[None]:
    return Request("DELETE", _dataset(dataset_id), read_nothing, repeatable=False)


def _upload(upload_id: str) -> str:
    return f"/v1/datasets/uploads/{path_part(upload_id)}"


def _dataset(dataset_id: str) -> str:
    return f"/v1/datasets/{path_part(dataset_id)}"
