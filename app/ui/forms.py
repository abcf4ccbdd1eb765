"""What is wrong with a form, by the name of the field, so that a page can say it there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from app.web.problems import Problem, sentence


def _first_step(pointer: str) -> str:
    return pointer.partition(".")[0]


def invalid(
    errors: Iterable[Mapping[str, Any]],
    *,
    sentences: Mapping[tuple[str, str], str] = {},
    field: Callable[[str], str] = _first_step,
) -> dict[str, str]:
    """``errors`` of pydantic. ``field`` finds the form's field of a dotted pointer; ``sentences`` says by field and
    type of error what the model's own words do not."""
    wrong: dict[str, str] = {}
    for item in errors:
        name = field(".".join(str(step) for step in item["loc"]))
        wrong.setdefault(name, sentences.get((name, item["type"]), sentence(item)))
    return wrong


def refused(problem: Problem, *, field: Callable[[str], str] = _first_step) -> dict[str, str]:
    """What the service says against a form that is well-formed; under the empty name what is about all of it."""
    wrong = {field(str(e.get("pointer", "")).strip("/").replace("/", ".")): str(e["detail"]) for e in problem.errors}
    return wrong or {"": problem.detail}
