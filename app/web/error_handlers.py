"""Turn every exception that leaves a route into a problem (``problems``): the handlers, and the response they make."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.db.engine import READ_ONLY, ApiRoleMissing
from app.web.problems import (
    BODY_TOO_LARGE,
    CONFLICT,
    INTERNAL,
    INVALID_REQUEST,
    MALFORMED_REQUEST,
    MEDIA_TYPE,
    METHOD_NOT_ALLOWED,
    MISSING_SCOPE,
    NOT_ACCEPTABLE,
    NOT_FOUND,
    REQUEST_REFUSED,
    STORAGE_FULL,
    STORAGE_UNAVAILABLE,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
    ProblemType,
)
from core.contract.patterns import SAYS
from quant_experts.files import NO_SPACE

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
log = logging.getLogger(__name__)

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
        methods = _methods_at(request)
        detail = f"{request.method} is not possible at {request.url.path}; {', '.join(methods)} may be"
        return problem_response(request, kind, detail, headers={"Allow": ", ".join(methods)})
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
    of_method = {**scope, "method": method}
    return any(route.matches(dict(of_method))[0] is Match.FULL for route in scope["app"].routes)


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
