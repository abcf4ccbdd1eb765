"""Every error of the API as RFC 9457 problem details: one catalogue, one body, one content type.

``type`` is a stable reference, ``/problems/<slug>``, that programs match on; ``GET`` of it explains the problem.
``errors`` points into the request, ``retryable`` says whether the same request may succeed later.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException, RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.db.engine import READ_ONLY, ApiRoleMissing
from core.contract.patterns import SAYS
from quant_experts.files import NO_SPACE

MEDIA_TYPE = "application/problem+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
log = logging.getLogger(__name__)


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
_BY_STATUS = {
    400: MALFORMED_REQUEST,
    401: UNAUTHENTICATED,
    403: MISSING_SCOPE,
    404: NOT_FOUND,
    405: METHOD_NOT_ALLOWED,
    406: NOT_ACCEPTABLE,
    409: CONFLICT,
    413: BODY_TOO_LARGE,
    415: UNSUPPORTED_MEDIA_TYPE,
    422: INVALID_REQUEST,
    503: UNAVAILABLE,
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


def problem_response(
    request: Request,
    kind: ProblemType,
    detail: str,
    *,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
    status: int | None = None,
) -> Response:
    body = {
        "type": kind.uri,
        "title": kind.title,
        "status": status or kind.status,
        "detail": detail,
        "instance": request.url.path,
        "request_id": request.scope.get("request_id", ""),
        "retryable": kind.retryable,
        "errors": list(errors),
        "errors_total": sum(error.get("count", 1) for error in errors),
    }
    # ASCII only: a message may quote a lone surrogate of the client, which UTF-8 cannot encode.
    content = json.dumps(body, ensure_ascii=True).encode("ascii")
    return Response(content, status_code=status or kind.status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


UNREACHABLE = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)


def register(app: FastAPI) -> None:
    """Turn every exception that leaves a route into a problem."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http)
    for unstorable in (DataError, psycopg.DataError):
        app.add_exception_handler(unstorable, _unstorable)
    for unreachable in (*UNREACHABLE, PoolTimeout, ApiRoleMissing):
        app.add_exception_handler(unreachable, _database_unavailable)
    for fault in (InternalError, psycopg.InternalError):
        app.add_exception_handler(fault, _database_fault)
    app.add_exception_handler(OSError, _storage_fault)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(request, error.kind, error.detail, errors=error.errors, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    items = [{"pointer": _pointer(item["loc"]), "detail": sentence(item)} for item in error.errors()]
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return problem_response(request, MALFORMED_REQUEST, f"the body is not JSON: {items[0]['detail']}")
    content_type = request.headers.get("content-type", "")
    if items[0]["pointer"] == "" and isinstance(error.body, bytes | str) and not _is_json(content_type):
        detail = f"the body came as {content_type!a}: send it with Content-Type: application/json"
        items = [{"pointer": "/header/Content-Type", "detail": detail}]
    first = items[0]
    more = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
    return problem_response(
        request, INVALID_REQUEST, f"{first['pointer'] or 'the body'}: {first['detail']}{more}", errors=items
    )


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    kind = _BY_STATUS.get(error.status_code, INTERNAL if error.status_code >= 500 else REQUEST_REFUSED)
    detail = str(error.detail)
    if kind is NOT_FOUND:
        detail = f"no resource at {request.url.path}"
    elif kind is METHOD_NOT_ALLOWED:
        allowed = _methods_at(request)
        detail = f"{request.method} is not possible at {request.url.path}; {', '.join(allowed)} may be"
        return problem_response(request, kind, detail, headers={"Allow": ", ".join(allowed)})
    elif kind is MALFORMED_REQUEST:
        encoding = request.headers.get("content-encoding")
        detail = "the body cannot be read: it must be JSON in UTF-8, nested less than a few hundred levels"
        if encoding is not None:
            detail = f"the body came with Content-Encoding {encoding!a}: send it as it is, uncompressed"
    return problem_response(request, kind, detail, headers=error.headers, status=error.status_code)


async def _unstorable(request: Request, error: Exception) -> Response:
    """PostgreSQL cannot store a value that passed validation: refuse the request."""
    log.warning("value refused by PostgreSQL: %s", error)
    return problem_response(request, INVALID_REQUEST, "a value of the request cannot be stored")


async def _database_unavailable(request: Request, error: Exception) -> Response:
    log.error("database unavailable: %s", error)
    return problem_response(
        request, UNAVAILABLE, "the database does not answer; try again", headers={"Retry-After": "5"}
    )


async def _database_fault(request: Request, error: Exception) -> Response:
    if getattr(getattr(error, "orig", error), "sqlstate", None) != READ_ONLY:
        return unhandled(request, error)
    await request.app.state.service.engine.dispose()  # a server that became a replica refuses every write
    return await _database_unavailable(request, error)


async def _storage_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno is None:  # not from the file system
        return unhandled(request, error)
    log.error("request %s: storage failed", request.scope.get("request_id"), exc_info=error)
    headers = {"Retry-After": "30"}
    if error.errno in NO_SPACE:
        return problem_response(request, STORAGE_FULL, "the disk or a quota is full; nothing was kept", headers=headers)
    detail = "the storage does not take or give files; nothing was kept, try again"
    return problem_response(request, STORAGE_UNAVAILABLE, detail, headers=headers)


def unhandled(request: Request, error: BaseException) -> Response:
    """The last resort. The log gets the traceback, with the request id; the client does not."""
    log.error("request %s: unhandled %s", request.scope.get("request_id"), type(error).__name__, exc_info=error)
    title = HTTPStatus.INTERNAL_SERVER_ERROR.phrase
    return problem_response(request, INTERNAL, f"{title}; the log has more under the request id")


def _methods_at(request: Request) -> list[str]:
    """Methods of all routes with this path: RFC 9110 wants them all in ``Allow``."""
    methods = {method for method in METHODS if has_route(request.scope, method)}
    return [method for method in METHODS if method in methods or (method == "HEAD" and "GET" in methods)]


def has_route(scope: Scope, method: str) -> bool:
    requested = {**scope, "method": method}
    return any(route.matches(dict(requested))[0] is Match.FULL for route in scope["app"].routes)


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


def _pointer(location: Sequence[str | int]) -> str:
    """``("body", "options", "seed")`` → ``/options/seed``. Other parts of a request keep their name in front. The whole
    body is the empty pointer (RFC 6901).
    """
    parts = [str(part) for part in location]
    if parts and parts[0] == "body":
        parts = parts[1:]
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def sentence(item: Mapping[str, Any]) -> str:
    """An error of pydantic as a sentence for people."""
    message = str(item["msg"]).removeprefix("Value error, ")
    context = item.get("ctx") or {}
    if item["type"] == "json_invalid":
        return f"{context.get('error', message)} at character {item['loc'][-1]}"
    if item["type"] == "string_pattern_mismatch":
        return SAYS.get(context["pattern"], message)
    return message
