"""Real things for the fuzzing to meet: finished jobs with files, rows with images and audio, deliveries, uploads, keys.

``supply`` keeps some of each there while requests delete them, and writes their ids into a file that
``tests.app.fuzzing_hooks`` reads in Schemathesis' own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from core.contract.ids import new_id
from core.contract.uploads import PREFIX
from tests.app.conftest import Api, job_body, ok
from tests.app.test_audio_headers import row as spoken_row
from tests.app.test_audio_headers import wav
from tests.app.test_datasets import PNG, data_uri, jsonl, row
from tests.planning.big import write_72b

MODEL = "local/fuzzed"
WAITING = "fuzz/waiting"
"""Alias of jobs that are there to be cancelled."""
ENOUGH = 5
ENOUGH_UPLOADS = 50
"""A tenant may have 200, and requests begin more in half an hour."""
Params = dict[str, str]


async def supply(api: Api, target: Path, *, enough: int = ENOUGH) -> None:
    """Until cancelled; ``enough``: of each kind."""
    write_72b(Path(str(api.settings.model_root)) / MODEL.removeprefix("local/"))
    while True:
        found: dict[str, list[Params]] = {}
        dataset = await _dataset(api)
        for name, make in MAKERS.items():
            found[name] = [await make(api, dataset) for _ in range(enough)]
        scratch_file = target.with_suffix(".draft")
        scratch_file.write_text(json.dumps(found))
        scratch_file.rename(target)
        await asyncio.sleep(5)


async def _dataset(api: Api) -> str:
    rows = jsonl(row(image=data_uri(PNG)), spoken_row(wav()))
    return str(ok(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", rows)}), 201)["id"])


async def _rows(api: Api, dataset: str) -> Params:
    return {"dataset_id": await _dataset(api), "number": "1", "index": "0"}


async def _audio(api: Api, dataset: str) -> Params:
    return {"dataset_id": dataset, "number": "2", "index": "0"}


async def _job(api: Api, dataset: str) -> Params:
    job = await api.create_job(alias="fuzz/alias")
    await asyncio.to_thread(finish, api, job["id"])
    return {"job_id": job["id"], "name": "config.json"}


async def _push(api: Api, dataset: str) -> Params:
    ok(await api.client.put("/v1/hub-token", json={"token": "hf_of_the_fuzzer"}))
    api.execute(
        "DELETE FROM pushes WHERE created_at < clock_timestamp() - interval '10 s'"
    )  # a tenant may have so many
    job = (await api.create_job())["id"]
    push = ok(await api.client.post(f"/v1/jobs/{job}/pushes", json={"to": "hub:fuzz/model"}), 201)["id"]
    return {"job_id": job, "push_id": push}


async def _failed_job(api: Api, dataset: str) -> Params:
    job = await api.create_job()
    await asyncio.to_thread(_fail, api, job["id"])
    return {"job_id": job["id"]}


async def _waiting_job(api: Api, dataset: str) -> Params:
    return {"job_id": (await api.create_job(alias=WAITING))["id"]}


async def _repository(api: Api, dataset: str) -> Params:
    job = await _job(api, dataset)
    return {"namespace": "qe", "name": job["job_id"], "revision": "main", "path": "nested/file.txt"}


async def _folder(api: Api, dataset: str) -> Params:
    return {**await _repository(api, dataset), "path": "nested"}


async def _upload(api: Api, dataset: str) -> Params:
    stored = await asyncio.to_thread(lambda: list(api.service.storage.keys(PREFIX)))
    for old in sorted({key.split("/")[2] for key in stored})[:-ENOUGH_UPLOADS]:
        await api.client.delete(f"/v1/datasets/uploads/{old}")
    upload = ok(await api.client.post("/v1/datasets/uploads", json={}), 201)["id"]
    rows = jsonl(row())
    ok(await api.client.put(f"/v1/datasets/uploads/{upload}/parts/1", content=rows))
    return {"upload_id": upload, "number": "2", "sha256": hashlib.sha256(rows).hexdigest()}


async def _key(api: Api, dataset: str) -> Params:
    new = {"name": "fuzzed", "scopes": ["jobs:read"]}
    return {"key_id": ok(await api.client.post("/v1/keys", json=new), 201)["id"]}


async def _webhook(api: Api, dataset: str) -> Params:
    listed = ok(await api.client.get("/v1/webhooks?limit=100"))["data"]
    for old in listed[40:]:
        await api.client.delete(f"/v1/webhooks/{old['id']}")
    new = {"url": "https://example.com/hook", "event_types": ["job.succeeded"]}
    webhook = ok(await api.client.post("/v1/webhooks", json=new), 201)["id"]
    delivery = ok(await api.client.post(f"/v1/webhooks/{webhook}/ping"), 202)["id"]
    return {"webhook_id": webhook, "delivery_id": delivery}


async def _comparison(api: Api, dataset: str) -> Params:
    candidates = [{"scheme": "W4A6"}, {"scheme": "W4A8"}]
    body = {"model": {"id": MODEL}, "calibration": {"dataset": dataset}, "candidates": candidates}
    return {"comparison_id": ok(await api.client.post("/v1/comparisons", json=body), 201)["id"]}


async def _plan(api: Api, dataset: str) -> Params:
    body = job_body(model={"id": MODEL}, calibration={"dataset": dataset})
    return {"digest": ok(await api.client.post("/v1/jobs:plan", json=body))["digest"], "dataset": dataset}


MAKERS: dict[str, Callable[[Api, str], Any]] = {
    "rows": _rows,
    "audio": _audio,
    "job": _job,
    "push": _push,
    "failed job": _failed_job,
    "waiting job": _waiting_job,
    "repository": _repository,
    "folder": _folder,
    "upload": _upload,
    "key": _key,
    "webhook": _webhook,
    "comparison": _comparison,
    "plan": _plan,
}


def finish(api: Api, job_id: str) -> None:
    """As a worker that needs no time. Somebody may cancel the job before it begins, or before it ends."""
    try:
        _finish(api, job_id)
    except psycopg.errors.CheckViolation:
        with contextlib.suppress(psycopg.errors.CheckViolation):
            api.end(job_id, "cancelled")
    except psycopg.errors.UniqueViolation:
        pass  # the other thread finishes it


def _finish(api: Api, job_id: str) -> None:
    directory = Path(str(api.settings.home)) / "made" / job_id  # two threads finish jobs
    directory.mkdir(parents=True, exist_ok=True)
    report = json.dumps({"quality": {"kl": 0.01}}).encode()
    api.start(job_id)
    files = {
        "quality_report.json": report,
        "quality_report.html": b"<p>",
        "config.json": b"{}",
        "nested/file.txt": b"x",
    }
    types = {"json": "application/json", "html": "text/html", "txt": "text/plain"}
    for name, content in files.items():
        api.publish(job_id, name, content, directory, types[name.rpartition(".")[2]])
    api.end(job_id, "succeeded")


def _fail(api: Api, job_id: str) -> None:
    with contextlib.suppress(psycopg.errors.CheckViolation):
        api.start(job_id)
        api.end(job_id, "failed", {"code": "internal", "message": new_id("x"), "retryable": True})
