"""The client of the service: ``pip install 'quant-experts[client]'``. Loads neither torch nor the library.

    from quant_experts.client import Client

    with Client() as client:                       # QE_URL and QE_API_KEY, or the config file
        dataset = client.datasets.upload("rows.jsonl")
        job = client.jobs.create(model="Qwen/Qwen2-VL-2B-Instruct", calibration=dataset.id, scheme="W4A6")
        for event in job.follow():                 # survives dropped connections and restarts of the service
            print(event.seq, event.type, event.data)
        job.pull("checkpoint")                     # parallel, resumed, digests checked

``AsyncClient`` has the same methods, to be awaited.
"""

from __future__ import annotations

from quant_experts.client.asynchronous import AsyncClient, AsyncJob
from quant_experts.client.download import Transferred
from quant_experts.client.errors import (
    ApiError,
    ClientError,
    Conflict,
    ConnectionFailed,
    DigestMismatch,
    Forbidden,
    InvalidRequest,
    MisconfiguredClient,
    NotFound,
    ProblemItem,
    RateLimited,
    ServiceFault,
    Unauthenticated,
    Unavailable,
)
from quant_experts.client.synchronous import Client, Job
from quant_experts.client.views import (
    ArtifactView,
    AttemptView,
    CreatedKey,
    DatasetView,
    EventView,
    JobStatus,
    JobView,
    KeyView,
    LayerView,
    Schemes,
    WorkerView,
)

__all__ = [
    "ApiError",
    "ArtifactView",
    "AsyncClient",
    "AsyncJob",
    "AttemptView",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "CreatedKey",
    "DatasetView",
    "DigestMismatch",
    "EventView",
    "Forbidden",
    "InvalidRequest",
    "Job",
    "JobStatus",
    "JobView",
    "KeyView",
    "LayerView",
    "MisconfiguredClient",
    "NotFound",
    "ProblemItem",
    "RateLimited",
    "Schemes",
    "ServiceFault",
    "Transferred",
    "Unauthenticated",
    "Unavailable",
    "WorkerView",
]
