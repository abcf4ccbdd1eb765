"""Rendering of pages: templates, security headers, problem pages, redirects to the login."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi_swagger import resources as swagger_resources
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from app.ui import formats as words
from app.ui import history
from app.ui.navigation import menu
from app.ui.sign_in import USER, SignInRequired, User
from app.web import problems
from app.web.error_handlers import sentence
from app.web.negotiation import choose
from app.web.problems import Problem

HERE = Path(__file__).parent
SWAGGER_UI = Path(swagger_resources.__path__[0])
SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")
log = logging.getLogger(__name__)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Page(APIRoute):
    """A route of the dashboard: problems become pages, and requests without a session are redirected to the login."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await answer(request)
            except SignInRequired as needed:
                response = _to_login(request, needed)
            except Problem as problem:
                response = problem_page(request, problem)
            except RequestValidationError as error:
                detail = "; ".join(f"{item['loc'][-1]}: {sentence(item)}" for item in error.errors()[:3])
                response = problem_page(request, Problem(problems.INVALID_REQUEST, detail))
            except (OperationalError, InterfaceError, PoolTimeout) as error:
                log.error("database unavailable: %s", error)
                detail = "the database does not answer; try again in a moment"
                response = problem_page(request, Problem(problems.UNAVAILABLE, detail, headers={"Retry-After": "5"}))
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return handle


def render(request: Request, template: str, user: User | None, *, status: int = 200, **context: Any) -> HTMLResponse:
    context |= {"request": request, "user": user, "path": request.url.path}
    return HTMLResponse(_environment().get_template(template).render(context), status_code=status)


def redirect_to(path: str, **query: str) -> RedirectResponse:
    """A 303 redirect after a form, so that reloading the page does not send the form again."""
    return RedirectResponse(f"{path}?{urlencode(query)}" if query else path, status_code=303)


def problem_page(request: Request, problem: Problem) -> HTMLResponse:
    page = render(request, "problem.html", request.scope.get(USER), status=problem.kind.status, problem=problem)
    page.headers.update(problem.headers or {})
    return page


def register(app: FastAPI) -> None:
    """Answer 404 with a page to browsers; programs still get a problem."""
    answer: Callable[[Request, Exception], Awaitable[Response]] = app.exception_handlers[HTTPException]  # type: ignore[assignment]

    async def handle(request: Request, error: Exception) -> Response:
        media_type = choose(request.headers.get("accept"), (problems.MEDIA_TYPE, "application/json", "text/html"))
        if not isinstance(error, HTTPException) or error.status_code != 404 or media_type != "text/html":
            return await answer(request, error)
        page = problem_page(request, Problem(problems.NOT_FOUND, f"there is no page at {request.url.path}"))
        page.headers.update(HEADERS)
        return page

    app.add_exception_handler(HTTPException, handle)


def local_path(target: str) -> str:
    """``target`` when it is a path of this dashboard, else ``/``: an open redirect after login must not be possible."""
    plain = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if plain and "\\" not in target else "/"


def _to_login(request: Request, exception: SignInRequired) -> Response:
    query = {"ended": "1"} if exception.expired else {}
    if request.method == "GET":
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        query |= {"next": path} if path != "/" else {}
    return redirect_to("/login", **query)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {**words.FILTERS, **history.FILTERS}
    environment.filters |= filters
    environment.globals |= {"asset": asset, "menu": menu, "served_at": lambda: datetime.now(UTC)}
    return environment


@cache
def static_files() -> Mapping[str, Path]:
    """Static files by name: our own and Swagger UI's."""
    return {path.name: path for path in (*(HERE / "static").iterdir(), *(SWAGGER_UI / name for name in SWAGGER_FILES))}


@cache
def asset(name: str) -> str:
    """The URL of a static file. It changes with the content, so browsers may cache it for ever."""
    return f"/static/{name}?v={words.short_digest(static_files()[name].read_bytes())}"
