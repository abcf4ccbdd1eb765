"""Summaries of the OpenAPI document: what a list of operations says of each, in place of its function's name."""

from __future__ import annotations

import re
from typing import Any

FIRST_CLAUSE = re.compile(r".*?(?=[.:;](?:\s|$)|$)", re.DOTALL)


def add_summaries(document: dict[str, Any]) -> None:
    """The first clause of each description: "Queue a quantization", "Jobs, newest first"."""
    for operations in document["paths"].values():
        for operation in operations.values():
            clause = FIRST_CLAUSE.match(operation.get("description", ""))
            if clause and clause[0]:
                operation["summary"] = " ".join(clause[0].replace("`", "").split())
