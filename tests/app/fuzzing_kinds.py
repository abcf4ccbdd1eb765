"""Which of the real things of ``fuzzing_supply`` fits a path."""

from __future__ import annotations

import re

FITTING = {
    "/v1/jobs/{job_id}/retry": "failed job",
    "/v1/jobs/{job_id}/cancel": "waiting job",
    "/v1/jobs/{job_id}/pushes/{push_id}": "push",
    "/v1/jobs/{job_id}/pushes/{push_id}/cancel": "push",
    "/v1/datasets/{dataset_id}/rows/{number}/audio/{index}": "audio",
    "/hub/api/models/{namespace}/{name}/tree/{revision}/{path}": "folder",
}
BY_PARAMETER = {
    "job_id": "job",
    "dataset_id": "rows",
    "namespace": "repository",
    "upload_id": "upload",
    "key_id": "key",
    "webhook_id": "webhook",
    "comparison_id": "comparison",
    "digest": "plan",
}


def kind_of(path: str) -> str | None:
    """None for a path that names nothing."""
    named = (BY_PARAMETER[name] for name in re.findall(r"\{(\w+)\}", path) if name in BY_PARAMETER)
    return FITTING.get(path) or next(named, None)
