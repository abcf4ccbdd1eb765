"""Requests about the service itself."""

from __future__ import annotations

from quant_experts.client.requests.base import Request, read_as
from quant_experts.client.views.service import ModelList, Schemes, WorkerList, WorkerView


def schemes() -> Request[Schemes]:
    return Request("GET", "/v1/schemes", read_as(Schemes))


def models() -> Request[ModelList]:
    return Request("GET", "/v1/models", read_as(ModelList))


def workers() -> Request[list[WorkerView]]:
    return Request("GET", "/v1/workers", lambda response: read_as(WorkerList)(response).data)
