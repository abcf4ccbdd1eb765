"""The client of the service: ``pip install 'quant-experts[client]'``. Loads neither torch nor the library.

    from quant_experts.client import Client

    with Client() as client:                       # QE_URL and QE_API_KEY, or the config file
        dataset = client.datasets.upload("rows.jsonl")
        job = client.jobs.create(model="Qwen/Qwen2-VL-2B-Instruct", calibration=dataset.id, scheme="W4A6")
        for event in job.follow():                 # survives dropped connections and restarts of the service
            print(event.seq, event.type, event.data)
        job.pull("checkpoint")                     # parallel, resumed, digests checked

``AsyncClient`` has the same methods, to be awaited. It imports httpx and pydantic, and of the library
``errors`` and the row formats of ``planning``.
"""

from __future__ import annotations

from quant_experts.client.async_client import AsyncClient
from quant_experts.client.client import Client
from quant_experts.client.comparisons import AsyncComparison, Candidate, Comparison
from quant_experts.client.download import DownloadProgress
from quant_experts.client.embedded_images import EmbeddingProgress, InvalidRows
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
from quant_experts.client.job import AsyncJob, Job
from quant_experts.client.plans import AsyncPlan, Plan
from quant_experts.client.upload_progress import UploadProgress
from quant_experts.client.views.account import CreatedKey, HubTokenView, KeyView, Usage
from quant_experts.client.views.comparisons import ComparedJob, ComparisonView
from quant_experts.client.views.datasets import DatasetView, FiguresView, RowView
from quant_experts.client.views.jobs import ArtifactView, AttemptView, EventView, JobStatus, JobView, LayerView
from quant_experts.client.views.plans import KeptPlanView, PlanView
from quant_experts.client.views.pushes import BucketView, PushView
from quant_experts.client.views.service import LocalModel, ModelList, Schemes, WorkerView
from quant_experts.client.views.webhooks import DeliveryDetail, DeliveryView, WebhookView, WebhookWithSecret

__all__ = [
    "ApiError",
    "ArtifactView",
    "AsyncClient",
    "AsyncComparison",
    "AsyncJob",
    "AsyncPlan",
    "AttemptView",
    "BucketView",
    "Candidate",
    "Client",
    "ClientError",
    "ComparedJob",
    "Comparison",
    "ComparisonView",
    "Conflict",
    "ConnectionFailed",
    "CreatedKey",
    "DatasetView",
    "DeliveryDetail",
    "DeliveryView",
    "DigestMismatch",
    "DownloadProgress",
    "EmbeddingProgress",
    "EventView",
    "FiguresView",
    "Forbidden",
    "HubTokenView",
    "InvalidRequest",
    "InvalidRows",
    "Job",
    "JobStatus",
    "JobView",
    "KeptPlanView",
    "KeyView",
    "LayerView",
    "LocalModel",
    "MisconfiguredClient",
    "ModelList",
    "NotFound",
    "Plan",
    "PlanView",
    "ProblemItem",
    "PushView",
    "RateLimited",
    "RowView",
    "Schemes",
    "ServiceFault",
    "Unauthenticated",
    "Unavailable",
    "UploadProgress",
    "Usage",
    "WebhookView",
    "WebhookWithSecret",
    "WorkerView",
]
