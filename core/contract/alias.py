"""A job's alias: the name under which the Hub protocol serves the newest of the jobs that carry it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from core.contract import patterns

MAX_LENGTH = 96
"""The longest repository id that ``huggingface_hub`` accepts."""
JOB_NAMESPACE = "qe"
RESERVED = frozenset({JOB_NAMESPACE, "api", "models", "datasets", "spaces", "buckets", "kernels", "local"})
"""Namespaces that mean something else in the Hub protocol or to this service."""
FORBIDDEN = re.compile(r"--|\.\.|\.git$")


def _checked(alias: str) -> str:
    namespace = alias.partition("/")[0]
    if namespace.lower() in RESERVED:
        raise ValueError(f"alias {alias!r}: the namespace {namespace!r} is reserved; use your team's name")
    match = FORBIDDEN.search(alias)
    if match is not None:
        raise ValueError(f"alias {alias!r}: {match[0]!r} is not possible there in a repository id")
    return alias


Alias = Annotated[
    str,
    StringConstraints(pattern=patterns.ALIAS, max_length=MAX_LENGTH),
    AfterValidator(_checked),
]
