"""Links of the OpenAPI document: from the response that creates a resource to every operation that takes its id.

A client generator or a tester can follow them from ``POST /v1/jobs`` to the events of the job.
"""

from __future__ import annotations

import re
from typing import Any

FIRST_PARAMETER = re.compile(r"/\{([a-z_]+)\}")


def add_links(document: dict[str, Any]) -> None:
    """Add to every 201 response of a collection one link per operation below ``collection/{id}``."""
    paths: dict[str, dict[str, Any]] = document["paths"]
    for collection, operations in paths.items():
        created = operations.get("post", {}).get("responses", {}).get("201")
        if created is None or "{" in collection:
            continue
        for path, below in paths.items():
            match = FIRST_PARAMETER.match(path.removeprefix(collection)) if path.startswith(collection) else None
            if match is None:
                continue
            for operation in below.values():
                created.setdefault("links", {})[operation["operationId"]] = {
                    "operationId": operation["operationId"],
                    "parameters": {match[1]: "$response.body#/id"},
                }
