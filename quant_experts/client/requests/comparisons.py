"""Requests about comparisons."""

from __future__ import annotations

from typing import Any

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


def create_comparison(
    kind: type[View],
    *,
    model: str,
    calibration: str | DatasetView,
    revision: str | None,
    split: str | None,
    idempotency_key: str | None,
    **fields: Any,
) -> Request[View]:
    body = {**inputs(model, calibration, revision, split), **without_none(**with_ids(fields))}
    return Request("POST", "/v1/comparisons", read_as(kind), json=body, headers=idempotency_header(idempotency_key))


def get_comparison(kind: type[View], comparison_id: str) -> Request[View]:
    return Request("GET", _comparison(comparison_id), read_as(kind))


def list_comparisons(kind: type[View], *, page_size: int = 100) -> Request[Page[View]]:
    params: Params = [("limit", page_size)]
    return Request("GET", "/v1/comparisons", read_as(Page[kind]), params=params)  # type: ignore[valid-type]


def cancel_comparison(kind: type[View], comparison_id: str) -> Request[View]:
    return Request("POST", f"{_comparison(comparison_id)}/cancel", read_as(kind))


def delete_comparison(comparison_id: str) -> Request[None]:
    return Request("DELETE", _comparison(comparison_id), read_nothing, repeatable=False)


def comparison_plot(comparison_id: str) -> Request[str]:
    return Request("GET", f"{_comparison(comparison_id)}/plot", lambda response: response.text)


def _comparison(comparison_id: str) -> str:
    return f"/v1/comparisons/{path_part(comparison_id)}"
