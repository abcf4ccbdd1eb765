"""Every error of the API as RFC 9457 problem details: one catalogue, one body, one content type.

``type`` is a stable reference, ``/problems/<slug>``, that programs match on; ``GET`` of it explains the problem.
``errors`` points into the request, ``retryable`` says whether the same request may succeed later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import HTTPException
from pydantic import BaseModel, Field

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemType:
    slug: str
    status: int
    title: str
    retryable: bool = False

    @property
    def uri(self) -> str:
        return f"/problems/{self.slug}"


MALFORMED_REQUEST = ProblemType("malformed-request", 400, "The request cannot be read")
INVALID_CURSOR = ProblemType("invalid-cursor", 400, "The cursor does not belong to this listing")
UNAUTHENTICATED = ProblemType("unauthenticated", 401, "A valid API key is needed")
MISSING_SCOPE = ProblemType("missing-scope", 403, "The API key lacks a scope")
FORGED_FORM = ProblemType("forged-form", 403, "The form does not come from this session")
STORAGE_QUOTA_EXCEEDED = ProblemType("storage-quota-exceeded", 403, "The tenant has stored as much as it may")
NOT_FOUND = ProblemType("not-found", 404, "Not found")
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", 405, "The resource has no such method")
NOT_ACCEPTABLE = ProblemType("not-acceptable", 406, "No representation that the client accepts")
CONFLICT = ProblemType("conflict", 409, "The request conflicts with what is there")
JOB_NOT_FINISHED = ProblemType("job-not-finished", 409, "The job has not finished", retryable=True)
JOB_FINISHED = ProblemType("job-finished", 409, "The job has finished")
JOB_NOT_RETRYABLE = ProblemType("job-not-retryable", 409, "Only a failed or cancelled job can be retried")
REPORT_NOT_READY = ProblemType("report-not-ready", 409, "The job has no report yet", retryable=True)
WEBHOOK_DISABLED = ProblemType("webhook-disabled", 409, "The webhook is disabled")
TOO_MANY_WEBHOOKS = ProblemType("too-many-webhooks", 409, "The tenant has as many webhooks as it may have")
TOO_MANY_BUCKETS = ProblemType("too-many-buckets", 409, "The tenant has as many buckets as it may have")
NO_DESTINATION_KEY = ProblemType("no-destination-key", 409, "The tenant has no key for the destination")
NOTHING_TO_PUSH = ProblemType("nothing-to-push", 409, "The job has no files to push")
PUSH_IN_PROGRESS = ProblemType("push-in-progress", 409, "The same push is on its way already", retryable=True)
PUSH_FINISHED = ProblemType("push-finished", 409, "The push has ended")
TOO_MANY_PUSHES = ProblemType("too-many-pushes", 429, "Too many pushes are on their way", retryable=True)
ENDPOINT_REFUSED = ProblemType("endpoint-refused", 422, "Nothing is pushed to such an address")
NO_HUB_TOKENS = ProblemType("no-hub-tokens", 409, "This service keeps no hub tokens of tenants")
HUB_TOKEN_UNREADABLE = ProblemType("hub-token-unreadable", 409, "The tenant's hub token cannot be opened")
DATASET_IN_USE = ProblemType("dataset-in-use", 409, "A job still needs the dataset", retryable=True)
UPLOAD_INCOMPLETE = ProblemType("upload-incomplete", 409, "The parts are not the whole file yet")
IDEMPOTENCY_IN_PROGRESS = ProblemType(
    "idempotency-in-progress", 409, "A request with this Idempotency-Key is being answered", retryable=True
)
PLAN_OUTDATED = ProblemType("plan-outdated", 409, "The model or the dataset has changed since it was planned")
PRECONDITION_FAILED = ProblemType("precondition-failed", 412, "The file is not the one that the request expects")
BODY_TOO_LARGE = ProblemType("body-too-large", 413, "The request body is too large")
UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported-media-type", 415, "The content type cannot be read here")
RANGE_NOT_SATISFIABLE = ProblemType("range-not-satisfiable", 416, "The file has no such bytes")
INVALID_REQUEST = ProblemType("invalid-request", 422, "The request is not valid")
INVALID_DATASET = ProblemType("invalid-dataset", 422, "The calibration rows are not valid")
DATASET_NOT_FOUND = ProblemType("dataset-not-found", 422, "The dataset does not exist")
DATASET_EXPIRED = ProblemType("dataset-expired", 422, "The dataset has expired")
WEBHOOK_URL_REFUSED = ProblemType("webhook-url-refused", 422, "Nothing is sent to such a URL")
MODEL_NOT_FOUND = ProblemType("model-not-found", 422, "The local model does not exist")
INVALID_MODEL = ProblemType("invalid-model", 422, "The model cannot be read")
PLAN_NOT_FOUND = ProblemType("plan-not-found", 422, "There is no such plan, or it is older than 24 hours")
PLAN_MISMATCH = ProblemType("plan-mismatch", 422, "The body is not the one that was planned")
PLAN_REFUSED = ProblemType("plan-refused", 422, "The plan says that the job would be refused")
INSUFFICIENT_MEMORY = ProblemType("insufficient-memory", 422, "No known worker has the memory that the job needs")
IDEMPOTENCY_MISMATCH = ProblemType("idempotency-mismatch", 422, "The Idempotency-Key was used for another request")
RATE_LIMITED = ProblemType("rate-limited", 429, "Too many requests with this key", retryable=True)
TOO_MANY_QUEUED_JOBS = ProblemType("too-many-queued-jobs", 429, "Too many jobs wait already", retryable=True)
BUSY = ProblemType("busy", 429, "Too many requests of the tenant wait for files to be read", retryable=True)
REQUEST_REFUSED = ProblemType("request-refused", 400, "The request was refused")
INTERNAL = ProblemType("internal", 500, "A fault of the service", retryable=True)
OBJECT_MISSING = ProblemType("object-missing", 500, "The stored file is gone")
HUB_UNAVAILABLE = ProblemType("hub-unavailable", 503, "The Hugging Face Hub does not answer", retryable=True)
UNAVAILABLE = ProblemType("unavailable", 503, "The service cannot reach its database", retryable=True)
STORAGE_UNAVAILABLE = ProblemType("storage-unavailable", 503, "The service cannot use its storage", retryable=True)
STORAGE_FULL = ProblemType("storage-full", 507, "The service has no space left", retryable=True)

CATALOGUE: dict[str, ProblemType] = {
    value.slug: value for value in list(globals().values()) if isinstance(value, ProblemType)
}


class ProblemItem(BaseModel):
    pointer: str = Field(description="JSON pointer (RFC 6901) into the body, or `/query/…`, `/path/…`, `/header/…`.")
    detail: str
    row: int | None = Field(
        default=None, description="Row of an uploaded dataset, counted from 1; the first of several."
    )
    count: int = Field(default=1, description="How many errors of this kind there are; only the first is told.")


class ProblemDetails(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(examples=["/problems/invalid-request"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="Path of the request.")
    request_id: str
    retryable: bool
    errors: list[ProblemItem] = Field(default_factory=list, description="One of each kind; at most a few dozen.")
    errors_total: int = Field(default=0, description="The sum of their counts.")


class Problem(HTTPException):
    """Raise it anywhere below a route; the client gets the problem.

    An ``HTTPException``, because FastAPI turns any other exception into a plain 400 while it reads a body.
    """

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code=kind.status, detail=detail, headers=dict(headers or {}))
        self.kind = kind
        self.errors = [dict(error) for error in errors]


REPEATED = (IDEMPOTENCY_IN_PROGRESS, IDEMPOTENCY_MISMATCH)
"""Problems of any request with an ``Idempotency-Key``."""
PUSH_REFUSED = (NO_DESTINATION_KEY, PUSH_IN_PROGRESS, TOO_MANY_PUSHES)
"""Problems of any request that makes pushes."""
CREATION_REFUSED = (
    DATASET_NOT_FOUND,
    DATASET_EXPIRED,
    TOO_MANY_QUEUED_JOBS,
    STORAGE_QUOTA_EXCEEDED,
    MODEL_NOT_FOUND,
    INSUFFICIENT_MEMORY,
    IDEMPOTENCY_IN_PROGRESS,
    IDEMPOTENCY_MISMATCH,
    MALFORMED_REQUEST,
    BODY_TOO_LARGE,
    BUSY,
)
"""Problems of any request that creates jobs."""


def documented(*kinds: ProblemType) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route: these problems, and those of every route."""
    by_status: dict[int | str, list[ProblemType]] = {}
    for kind in (*kinds, UNAUTHENTICATED, MISSING_SCOPE, INVALID_REQUEST, RATE_LIMITED, INTERNAL, UNAVAILABLE):
        by_status.setdefault(kind.status, []).append(kind)
    return {
        status: {
            "description": "; ".join(f"`{kind.slug}`: {kind.title}" for kind in group),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status, group in sorted(by_status.items(), key=lambda item: str(item[0]))
    }
