"""Requests about pushes of jobs, and about keys of buckets."""

from __future__ import annotations

from quant_experts.client.requests.base import (
    Request,
    idempotency_header,
    path_part,
    read_as,
    read_nothing,
    without_none,
)
from quant_experts.client.views.base import Page
from quant_experts.client.views.pushes import BucketList, BucketView, PushView


def create_push(
    job_id: str, *, to: str, export: str | None, private: bool, idempotency_key: str | None
) -> Request[PushView]:
    body = without_none(to=to, export=export, private=private)
    path = f"/v1/jobs/{path_part(job_id)}/pushes"
    return Request("POST", path, read_as(PushView), json=body, headers=idempotency_header(idempotency_key))


def list_pushes(job_id: str, *, page_size: int = 100) -> Request[Page[PushView]]:
    path = f"/v1/jobs/{path_part(job_id)}/pushes"
    return Request("GET", path, read_as(Page[PushView]), params=[("limit", page_size)])


def get_push(job_id: str, push_id: str) -> Request[PushView]:
    return Request("GET", f"/v1/jobs/{path_part(job_id)}/pushes/{path_part(push_id)}", read_as(PushView))


def cancel_push(job_id: str, push_id: str) -> Request[PushView]:
    return Request("POST", f"/v1/jobs/{path_part(job_id)}/pushes/{path_part(push_id)}/cancel", read_as(PushView))


def buckets() -> Request[BucketList]:
    return Request("GET", "/v1/buckets", read_as(BucketList))


def set_bucket(
    name: str,
    *,
    access_key_id: str,
    secret_access_key: str,
    endpoint_url: str | None,
    region: str | None,
    path_style: bool,
) -> Request[BucketView]:
    key = {"access_key_id": access_key_id, "secret_access_key": secret_access_key}
    body = {**key, **without_none(endpoint_url=endpoint_url, region=region, path_style=path_style)}
    return Request("PUT", f"/v1/buckets/{path_part(name)}", read_as(BucketView), json=body)


def delete_bucket(name: str) -> Request[None]:
    return Request("DELETE", f"/v1/buckets/{path_part(name)}", read_nothing, repeatable=False)
