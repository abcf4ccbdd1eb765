"""The table of scopes in docs/api.md, made from the routes: ``python -m tests.app.scope_table`` writes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import getclosurevars
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.access.auth import EXPLAINED, Scope
from app.main import create_app
from core.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
BLOCK = re.compile(r"(<!-- scopes: [^>]+ -->\n)(.*?)(<!-- end of scopes -->)", re.DOTALL)
HUB = "everything below `/hub`"
"""Asks for its scope by itself, because a hub client sends its key in more ways than one."""


def scope_table(app: FastAPI) -> str:
    """One line for each scope: what it is for, and its routes below ``/v1``."""
    lines = ["| scope | a key with it may | routes below `/v1` |", "|---|---|---|"]
    for scope in Scope:
        routes = [f"`{route}`" for route, needed in routes_of_keys(app) if needed is scope]
        more = [HUB] if scope is Scope.JOBS_READ else []
        lines.append(f"| `{scope}` | {EXPLAINED[scope]} | {', '.join(routes + more)} |")
    return "\n".join(lines) + "\n"


def routes_of_keys(app: FastAPI) -> Iterator[tuple[str, Scope | None]]:
    """``METHOD /path`` below ``/v1``, and the scope that its key needs; None: any key will do."""
    for context in iter_route_contexts(app.routes):
        calls = _calls(getattr(context, "dependant", None))
        scopes = [getclosurevars(call).nonlocals["scope"] for call in calls if _asks(call)]
        if scopes and str(context.path).startswith("/v1/"):
            for method in sorted(set(context.methods or ()) - {"HEAD"}):
                yield f"{method} {str(context.path).removeprefix('/v1').replace(':path}', '}')}", scopes[0]


def _calls(dependant: Any) -> Iterator[Any]:
    if dependant is None:
        return
    yield dependant.call
    for dependency in dependant.dependencies:
        yield from _calls(dependency)


def _asks(call: Any) -> bool:
    return getattr(call, "__qualname__", "").startswith("require.") and call.__module__ == "app.deps"


if __name__ == "__main__":
    table = scope_table(create_app(Settings()))
    PAGE.write_text(BLOCK.sub(lambda match: f"{match[1]}{table}{match[3]}", PAGE.read_text()))
