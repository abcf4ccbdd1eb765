"""An example body for every operation that takes one. ``/docs`` fills it in."""

from __future__ import annotations

from typing import Any

MODEL = {"id": "Qwen/Qwen2-VL-2B-Instruct"}
DATASET = "ds_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"
JOB = "job_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SPEC: dict[str, Any] = {"model": MODEL, "calibration": {"dataset": DATASET}, "scheme": "W4A8"}
EXAMPLES: dict[str, Any] = {
    "post /v1/jobs": {**SPEC, "name": "captions, 4 bits", "alias": "team/captions", "accept_if": {"max_kl": 0.05}},
    "post /v1/jobs:plan": SPEC,
    "post /v1/jobs:delete": {"status": ["failed", "cancelled"], "finished_before": "2026-01-01T00:00:00Z"},
    "post /v1/jobs/{job_id}/fork": {"scheme": "W4A16", "options": {"samples": 256}},
    "post /v1/comparisons": {
        "model": MODEL,
        "calibration": {"dataset": DATASET},
        "candidates": [{"scheme": "W4A8"}, {"scheme": "W4A16", "method": "gptq"}],
    },
    "post /v1/datasets/uploads": {"name": "rows.jsonl"},
    "post /v1/datasets/uploads/{upload_id}/complete": {"sha256": SHA256},
    "patch /v1/datasets/{dataset_id}": {"expires_at": "2027-01-01T00:00:00Z"},
    "post /v1/keys": {"name": "ci", "scopes": ["jobs:read", "jobs:write", "datasets:write"]},
    "post /v1/keys/{key_id}/rotate": {"keep_previous_s": 3600},
    "put /v1/hub-token": {"token": "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"},
    "put /v1/buckets/{bucket}": {
        "access_key_id": "AKIAIOSFODNN7EXAMPLE",
        "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "region": "eu-central-1",
    },
    "post /v1/jobs/{job_id}/pushes": {"to": "hub:team/captions-w4a8"},
    "patch /v1/retention": {"jobs_days": 90, "events_days": None},
    "post /v1/webhooks": {"url": "https://example.com/hook", "event_types": ["job.succeeded", "job.failed"]},
    "patch /v1/webhooks/{webhook_id}": {"event_types": ["job.failed"]},
    "post /v1/webhooks/{webhook_id}/rotate-secret": {"keep_previous_s": 3600},
    "post /hub/api/models/{namespace}/{name}/paths-info/{revision}": {"paths": ["config.json"]},
}
"""Examples by method and path. Operations that take a file have none."""
FILES = ("multipart/form-data", "application/octet-stream")


def add_examples(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                example = EXAMPLES.get(f"{method} {path}")
                if example is not None and media_type not in FILES:
                    content["example"] = example
