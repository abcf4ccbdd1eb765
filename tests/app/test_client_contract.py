"""The client repeats the shapes of the API, because it must not import it; here the two are held together."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from core.contract.events import TERMINAL
from core.ledger.states import FINISHED, JobStatus
from quant_experts.client import views
from quant_experts.client.views import jobs

ROOT = Path(__file__).parent.parent.parent
DOCUMENT: dict[str, Any] = json.loads((ROOT / "openapi.json").read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
WITHOUT_REQUEST = {
    "get /v1/jobs/{}/artifacts/{}": "client/download.py reads it in pieces",
    "get /v1/jobs/{}/archive": "for curl and browsers: the client downloads the files one by one",
    "get /v1/audit": "for the dashboard and curl",
}
"""Operations below /v1 that quant_experts/client/requests has none for, and why."""
VIEWS = {
    name: view
    for module in pkgutil.iter_modules(views.__path__, f"{views.__name__}.")
    for name, view in vars(importlib.import_module(module.name)).items()
    if isinstance(view, type)
}
MIRRORED = sorted(VIEWS.keys() & SCHEMAS.keys())


def test_what_a_user_meets_most_is_mirrored() -> None:
    assert {"JobView", "EventView", "LayerView", "AttemptView", "ArtifactView", "DatasetView", "KeyView"} <= set(
        MIRRORED
    )


@pytest.mark.parametrize("name", MIRRORED)
def test_a_view_asks_for_no_field_that_the_api_does_not_have(name: str) -> None:
    """What the API has beyond that is kept in ``model_extra``."""
    view, schema = VIEWS[name], SCHEMAS[name]
    assert issubclass(view, BaseModel)
    assert set(view.model_fields) <= set(schema["properties"]), "a field that the API does not have"
    required = {field for field, info in view.model_fields.items() if info.is_required()}
    assert required <= set(schema.get("required", ())), "the API may leave it out"


def test_states_and_terminal_events_are_the_same() -> None:
    assert set(get_args(jobs.JobStatus)) == set(JobStatus)
    assert set(jobs.FINISHED) == FINISHED
    assert jobs.TERMINAL == TERMINAL


def test_the_client_has_a_request_for_every_operation() -> None:
    operations = {
        f"{method} {re.sub('{[^}]+}', '{}', path)}"
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
        if path.startswith("/v1/") and method != "head"
    }
    sources = (ROOT / "quant_experts" / "client" / "requests").glob("*.py")
    requests = {request for source in sources for request in _requests(ast.parse(source.read_text()))}

    assert requests <= operations, "the API has no such operation"
    assert operations - requests == set(WITHOUT_REQUEST), "CONTRIBUTING.md, add a route, step 4"


def _requests(module: ast.Module) -> Iterator[str]:
    """``method /path`` of every ``Request(…)`` of a module, ``{}`` for what is filled in."""
    functions = {function.name: function for function in module.body if isinstance(function, ast.FunctionDef)}
    for function in functions.values():
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Request":
                method, path = call.args[:2]
                if isinstance(method, ast.Constant):
                    yield f"{str(method.value).lower()} {_text(path, function, functions)}"


def _text(node: ast.expr, function: ast.FunctionDef, functions: dict[str, ast.FunctionDef]) -> str:
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=values):
            return "".join(_text(value, function, functions) for value in values)
        case ast.FormattedValue(value=value):
            return _text(value, function, functions)
        case ast.Name(id=name):
            assigned = (
                step.value
                for step in ast.walk(function)
                if isinstance(step, ast.Assign)
                and any(isinstance(to, ast.Name) and to.id == name for to in step.targets)
            )
            value = next(assigned, None)
            return "{}" if value is None else _text(value, function, functions)
        case ast.Call(func=ast.Name(id=name)) if name in functions:
            called = functions[name]
            returned = next(step.value for step in ast.walk(called) if isinstance(step, ast.Return))
            assert returned is not None
            return _text(returned, called, functions)
    return "{}"
