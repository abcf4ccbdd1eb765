"""Summaries of operations in the OpenAPI document. Without them lists show the name of the function."""

from __future__ import annotations

import re
from typing import Any

FIRST_CLAUSE = re.compile(r".*?(?=[.:;](?:\s|$)|$)", re.DOTALL)


def add_summaries(document: dict[str, Any]) -> None:
    """Set each summary to the first clause of the description: "Queue a quantization", "Jobs, newest first"."""
    for operations in document["paths"].values():
        for operation in operations.values():
            clause = FIRST_CLAUSE.match(operation.get("description", ""))
            if clause and clause[0]:
                operation["summary"] = " ".join(clause[0].replace("`", "").split())
