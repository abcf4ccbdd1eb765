"""What another tenant may see of each route. A route that is in none of these tables fails the tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from tests.app.conftest import job_body
from tests.app.test_audio_headers import row as heard
from tests.app.test_audio_headers import wav
from tests.app.test_datasets import data_uri, picture, row

NOBODYS = {
    "GET /openapi.json": "the contract",
    "GET /docs": "the contract",
    "GET /healthz": "the process",
    "GET /readyz": "the service",
    "GET /metrics": "sums over all tenants, without a name or an id",
    "GET /problems/{slug}": "the contract",
    "GET /v1/schemes": "the contract",
    "GET /v1/models": "what the operator put below the model root, which every tenant's jobs may name",
    "GET /hub/api/whoami-v2": "the caller",
    "POST /v1/jobs:delete": "what it deletes: test_deletion.py names another's job",
    "GET /v1/retention": "the caller's tenant",
    "PATCH /v1/retention": "the caller's tenant",
    "GET /v1/hub-token": "the caller's tenant",
    "PUT /v1/hub-token": "the caller's tenant",
    "DELETE /v1/hub-token": "the caller's tenant",
    "GET /v1/buckets": "the caller's tenant: test_pushes.py looks at another's",
    "PUT /v1/buckets/{bucket}": "the caller's tenant",
    "DELETE /v1/buckets/{bucket}": "the caller's tenant: test_pushes.py names another's",
    "GET /v1/usage": "sums over the caller's tenant: test_usage.py looks at another's",
}
"""Routes that show no tenant's things, and why."""

LISTS = (
    "GET /v1/jobs",
    "GET /v1/comparisons",
    "GET /v1/datasets",
    "GET /v1/keys",
    "GET /v1/webhooks",
    "GET /v1/workers",
    "GET /v1/audit",
)
"""Routes that list: of another tenant's things they show none."""

OBJECTS: dict[str, dict[str, Any]] = {
    "GET /v1/jobs/{job_id}": {},
    "DELETE /v1/jobs/{job_id}": {},
    "DELETE /v1/jobs/{job_id}/artifacts": {},
    "POST /v1/jobs/{job_id}/cancel": {},
    "POST /v1/jobs/{job_id}/retry": {},
    "POST /v1/jobs/{job_id}/fork": {"json": {"scheme": "W4A8"}},
    "GET /v1/plans/{digest}": {},
    "GET /v1/comparisons/{comparison_id}": {},
    "GET /v1/comparisons/{comparison_id}/plot": {},
    "POST /v1/comparisons/{comparison_id}/cancel": {},
    "DELETE /v1/comparisons/{comparison_id}": {},
    "GET /v1/jobs/{job_id}/events": {},
    "HEAD /v1/jobs/{job_id}/events": {},
    "GET /v1/jobs/{job_id}/layers": {},
    "GET /v1/jobs/{job_id}/attempts": {},
    "GET /v1/jobs/{job_id}/logs": {},
    "GET /v1/jobs/{job_id}/artifacts": {},
    "GET /v1/jobs/{job_id}/artifacts/{name:path}": {"name": "config.json"},
    "HEAD /v1/jobs/{job_id}/artifacts/{name:path}": {"name": "config.json"},
    "GET /v1/jobs/{job_id}/archive": {},
    "HEAD /v1/jobs/{job_id}/archive": {},
    "GET /v1/jobs/{job_id}/report": {},
    "POST /v1/jobs/{job_id}/pushes": {"json": {"to": "hub:team/model"}},
    "GET /v1/jobs/{job_id}/pushes": {},
    "GET /v1/jobs/{job_id}/pushes/{push_id}": {},
    "POST /v1/jobs/{job_id}/pushes/{push_id}/cancel": {},
    "GET /v1/datasets/{dataset_id}": {},
    "PATCH /v1/datasets/{dataset_id}": {"json": {"expires_at": None}},
    "DELETE /v1/datasets/{dataset_id}": {},
    "GET /v1/datasets/{dataset_id}/rows": {},
    "GET /v1/datasets/{dataset_id}/rows/{number}/images/{index}": {"number": 1, "index": 0},
    "GET /v1/datasets/{dataset_id}/rows/{number}/audio/{index}": {"number": 1, "index": 0},
    "GET /v1/datasets/{dataset_id}/statistics": {},
    "GET /v1/datasets/uploads/{upload_id}": {},
    "PUT /v1/datasets/uploads/{upload_id}/parts/{number}": {"number": 1, "content": b"x"},
    "POST /v1/datasets/uploads/{upload_id}/complete": {"json": {"sha256": "0" * 64}},
    "DELETE /v1/datasets/uploads/{upload_id}": {},
    "POST /v1/keys/{key_id}/rotate": {},
    "DELETE /v1/keys/{key_id}": {},
    "GET /v1/webhooks/{webhook_id}": {},
    "PATCH /v1/webhooks/{webhook_id}": {"json": {"description": "x"}},
    "DELETE /v1/webhooks/{webhook_id}": {},
    "POST /v1/webhooks/{webhook_id}/rotate-secret": {},
    "POST /v1/webhooks/{webhook_id}/ping": {},
    "GET /v1/webhooks/{webhook_id}/deliveries": {},
    "GET /v1/webhooks/{webhook_id}/deliveries/{delivery_id}": {},
    "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver": {},
    "GET /hub/api/models/{namespace}/{name}": {},
    "GET /hub/api/models/{namespace}/{name}/revision/{revision}": {},
    "GET /hub/api/models/{namespace}/{name}/tree/{revision}": {},
    "GET /hub/api/models/{namespace}/{name}/tree/{revision}/{path:path}": {"path": "templates"},
    "POST /hub/api/models/{namespace}/{name}/paths-info/{revision}": {"json": {"paths": ["config.json"]}},
    "GET /hub/api/models/{namespace}/{name}/refs": {},
    "GET /hub/api/models/{namespace}/{name}/commits/{revision}": {},
    "GET /hub/{namespace}/{name}/resolve/{revision}/{path:path}": {"path": "config.json"},
    "HEAD /hub/{namespace}/{name}/resolve/{revision}/{path:path}": {"path": "config.json"},
}
"""Routes of one thing: it is there for its owner and 404 for others. Beside the route: what the path and body need."""

PICTURED = row(data_uri(picture()))
ROW = json.dumps({"messages": [*heard(wav())["messages"], *PICTURED["messages"]]}).encode()
"""With one image and one audio file."""

COMPARISON = {
    "model": {"id": "acme/tiny-vl"},
    "calibration": {"dataset": "acme/rows"},
    "candidates": [{"scheme": "W4A6"}, {"scheme": "W4A8"}],
}

CREATES: dict[str, dict[str, Any]] = {
    "POST /v1/jobs": {"json": job_body()},
    "POST /v1/comparisons": {"json": COMPARISON},
    "POST /v1/jobs:plan": {"json": job_body(model={"id": "local/tiny"}, calibration={"dataset": "ds_" + "0" * 32})},
    "POST /v1/datasets": {"files": {"file": ("r.jsonl", ROW)}},
    "POST /v1/datasets/uploads": {"json": {}},
    "POST /v1/keys": {"json": {"name": "k", "scopes": ["jobs:read"]}},
    "POST /v1/webhooks": {"json": {"url": "https://hooks.example.com/x"}},
}
"""Routes that make something of the caller's own."""

DASHBOARD = {
    "GET /login": "asks for a key",
    "POST /login": "asks for a key",
    "POST /logout": "",
    "GET /static/{name}": "style sheet, script, icon",
    "GET /": "list",
    "GET /jobs/new": "form",
    "POST /jobs/new": "form",
    "GET /jobs/{job_id}": "object",
    "POST /jobs/{job_id}/cancel": "object",
    "POST /jobs/{job_id}/retry": "object",
    "POST /jobs/{job_id}/delete": "object",
    "POST /jobs/delete": "form",
    "POST /usage/retention": "form",
    "GET /jobs/{job_id}/events": "object",
    "GET /jobs/{job_id}/report": "object",
    "GET /jobs/{job_id}/files/{name:path}": "object",
    "GET /jobs/{job_id}/archive": "object",
    "GET /datasets": "list",
    "POST /datasets": "form",
    "POST /datasets/{dataset_id}/delete": "object",
    "POST /datasets/{dataset_id}/keep": "object",
    "GET /keys": "list",
    "POST /keys": "form",
    "POST /keys/hub-token": "form",
    "POST /keys/hub-token/delete": "form",
    "POST /keys/{key_id}/revoke": "object",
    "POST /keys/buckets": "form",
    "POST /keys/buckets/{bucket}/delete": "form",
    "POST /jobs/{job_id}/pushes": "object",
    "POST /jobs/{job_id}/pushes/{push_id}/cancel": "object",
    "GET /workers": "list",
    "GET /jobs/{job_id}/fork": "object",
    "POST /jobs/{job_id}/fork": "object",
    "GET /comparisons": "list",
    "GET /comparisons/new": "form",
    "POST /comparisons/new": "form",
    "GET /comparisons/{comparison_id}": "object",
    "POST /comparisons/{comparison_id}/cancel": "object",
    "POST /comparisons/{comparison_id}/delete": "object",
    "GET /datasets/{dataset_id}": "object",
    "GET /datasets/{dataset_id}/rows/{number}/images/{index}": "object",
    "GET /datasets/{dataset_id}/rows/{number}/audio/{index}": "object",
    "GET /usage": "list",
    "GET /audit": "list",
    "GET /webhooks": "list",
    "POST /webhooks": "form",
    "GET /webhooks/{webhook_id}": "object",
    "POST /webhooks/{webhook_id}/change": "object",
    "POST /webhooks/{webhook_id}/status/{status}": "object",
    "POST /webhooks/{webhook_id}/rotate": "object",
    "POST /webhooks/{webhook_id}/ping": "object",
    "POST /webhooks/{webhook_id}/delete": "object",
    "GET /webhooks/{webhook_id}/deliveries/{delivery_id}": "object",
    "POST /webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver": "object",
}
"""Pages, which take a session instead of a key: ``test_dashboard.py`` looks at them with another tenant's."""


@dataclass(frozen=True)
class Owned:
    """The ids of one tenant's things, one of each kind."""

    job_id: str
    dataset_id: str
    key_id: str
    webhook_id: str
    delivery_id: str
    upload_id: str
    comparison_id: str
    push_id: str
    digest: str
    """Of a plan."""

    def path(self, route: str, values: dict[str, Any]) -> str:
        """``route`` with the ids in it."""
        known = {"namespace": "qe", "name": self.job_id, "revision": "main", **vars(self), **values}
        template = route.partition(" ")[2].replace(":path}", "}")
        return template.format(**known)


def route_table(app: FastAPI) -> Iterator[str]:
    """``METHOD /path`` of everything that the application answers."""
    for context in iter_route_contexts(app.routes):
        assert context.methods is not None, f"{context.path}: a mounted application needs cases of its own"
        for method in sorted(context.methods):
            implied = method == "HEAD" and "GET" in context.methods
            if not implied:
                yield f"{method} {context.path}"
