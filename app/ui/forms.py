"""Errors of a form by the name of the field, so that a page shows them beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from starlette.datastructures import FormData

from app.web.error_handlers import sentence
from app.web.problems import Problem


def values_of(form: FormData, names: Iterable[str]) -> dict[str, str]:
    return {name: str(form.get(name, "")).strip() for name in names}


def _first_step(pointer: str) -> str:
    return pointer.partition(".")[0]


def invalid(
    errors: Iterable[Mapping[str, Any]],
    *,
    sentences: Mapping[tuple[str, str], str] = {},
    field: Callable[[str], str] = _first_step,
) -> dict[str, str]:
    """Errors of pydantic by field. ``field``: dotted pointer → field of the form. ``sentences``: own messages, by field
    and type of error."""
    wrong: dict[str, str] = {}
    for item in errors:
        name = field(".".join(str(step) for step in item["loc"]))
        wrong.setdefault(name, sentences.get((name, item["type"]), sentence(item)))
    return wrong


def refused(problem: Problem, *, field: Callable[[str], str] = _first_step) -> dict[str, str]:
    """Errors of a Problem by field; the empty name is the whole form."""
    wrong = {field(str(e.get("pointer", "")).strip("/").replace("/", ".")): str(e["detail"]) for e in problem.errors}
    return wrong or {"": problem.detail}
