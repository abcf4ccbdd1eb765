"""A service that has been in use for a while, as rows of its ledger."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from quant_experts.report.page import render_report
from tests.app.conftest import Api, ok
from tests.app.test_audio_headers import row as heard
from tests.app.test_audio_headers import wav
from tests.app.test_datasets import data_uri, picture, row
from tests.quant_experts.reports import RECIPE, rich_report

MODEL = "Qwen/Qwen2-VL-7B-Instruct"
REFUSED = "row 17: 2 images but 1 <image> part in messages"
SUMMARY = {
    "kl": 0.0214, "baseline_kl": 0.0982, "top1_agreement": 0.962, "effective_bits": 5.31,
    "perplexity_full": 6.213, "perplexity_quantized": 6.291,
    "bytes_before": 16_582_000_000, "bytes_after": 6_214_000_000, "warnings": 2,
    "calibration_verdict": "good", "images_verdict": "keeps_looking",
}  # fmt: skip
MISSED = "KL is 0.0214 nats per token, over the limit of 0.01"
DISABLED = "wh_" + "d" * 32
FAILED_DELIVERY = "whd_" + "1".zfill(32)
WEBHOOK = {"url": "https://ci.example.com/hooks/quantized", "description": "starts the smoke test"}


async def fill(api: Api, directory: Path) -> dict[str, str]:
    """Name → id of one job per state, and of what else there is."""
    text = {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]}
    rows = (json.dumps(text) + "\n").encode() * 128
    for name in ("receipts, 128 rows of November", "charts-v2.jsonl"):
        form = {"file": (name, rows)}
        dataset = ok(await api.client.post("/v1/datasets", files=form, data={"name": name}), 201)["id"]
    pictured = row(data_uri(picture(size=(320, 200))), text="What is it?")
    content = (json.dumps(pictured) + "\n").encode() + rows
    shown = ok(await api.client.post("/v1/datasets", files={"file": ("pictured.jsonl", content)}), 201)["id"]
    for name, scopes in {"ci": ["jobs:read", "jobs:write"], "grafana": ["workers:read"]}.items():
        key = ok(await api.client.post("/v1/keys", json={"name": name, "scopes": scopes}), 201)
    ok(await api.client.delete(f"/v1/keys/{key['id']}"))
    webhook = ok(await api.client.post("/v1/webhooks", json=WEBHOOK), 201)["id"]
    _webhooks(api, webhook)
    spoken = (json.dumps(heard(wav(seconds=2.5), language="en")) + "\n").encode() * 12
    sound = ok(await api.client.post("/v1/datasets", files={"file": ("calls.jsonl", spoken)}), 201)["id"]
    expired = ok(await api.client.post("/v1/datasets", files={"file": ("October.jsonl", rows)}), 201)["id"]
    api.execute("UPDATE datasets SET expires_at = now() - interval '3 days' WHERE id = %s", [expired])
    jobs: dict[str, str] = {}
    for state in ("cancelled", "failed", "rejected", "succeeded", "cancelling", "running", "queued"):
        body: dict[str, Any] = {
            "model": {"id": MODEL}, "calibration": {"dataset": dataset}, "labels": {"team": "vision", "run": "nightly"},
            "name": {"succeeded": "receipts nightly", "running": "charts, W4A6 on GPTQ"}.get(state),
            "accept_if": {"max_kl": 0.01} if state == "rejected" else None,
            "method": "qe-gptq" if state == "running" else "qe",
        }  # fmt: skip
        jobs[state] = (await api.create_job(**{k: v for k, v in body.items() if v is not None}))["id"]
    api.execute("UPDATE jobs SET created_at = created_at - interval '1 hour' * (7 - (SELECT count(*) FROM jobs j"
                " WHERE j.created_at < jobs.created_at)), queued_at = queued_at - interval '4 minutes'")  # fmt: skip
    api.execute("UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE id = %s", [jobs["cancelled"]])
    for state in ("failed", "rejected", "succeeded", "cancelling", "running"):
        api.start(jobs[state])
        api.append_event(jobs[state], "job.started", {"attempt": 1, "worker": "gpu-a1:7", "resumed_from_block": 0})
    api.end(jobs["failed"], "failed", {"code": "invalid_calibration", "message": REFUSED, "retryable": False})
    _attempt(api, jobs["failed"], 1, "failed", 0, 0, {"message": REFUSED})
    _blocks(api, jobs["running"], 19, attempts={17: 2})
    api.execute("UPDATE jobs SET attempt = 2, worker = 'gpu-b2:3' WHERE id = %s", [jobs["running"]])
    api.append_event(jobs["running"], "job.requeued", {"attempt": 1, "reason": "the worker was not heard of for 120 s"})
    api.append_event(jobs["running"], "job.started", {"attempt": 2, "worker": "gpu-b2:3", "resumed_from_block": 17})
    _attempt(api, jobs["running"], 1, "lease_expired", 0, 17)
    api.execute(
        "UPDATE jobs SET progress = progress || %s::jsonb WHERE id = %s",
        [json.dumps({"group": "model.language_model.layers.19.self_attn.qkv"}), jobs["running"]],
    )
    _blocks(api, jobs["cancelling"], 5)
    _attempt(api, jobs["cancelling"], 1, None, 0, 5)
    api.execute("UPDATE jobs SET status = 'cancelling' WHERE id = %s", [jobs["cancelling"]])
    api.append_event(jobs["cancelling"], "job.cancel_requested")
    _attempt(api, jobs["running"], 2, None, 17, 2, worker="gpu-b2:3")
    _blocks(api, jobs["succeeded"], 28)
    _attempt(api, jobs["succeeded"], 1, "succeeded", 0, 28)
    _blocks(api, jobs["rejected"], 28, scale=1e-5)
    _attempt(api, jobs["rejected"], 1, "succeeded", 0, 28)
    summary = json.dumps(SUMMARY | {"verdict": "rejected", "missed": [MISSED]})
    api.execute("UPDATE jobs SET summary = %s, verdict = 'rejected' WHERE id = %s", [summary, jobs["rejected"]])
    api.end(jobs["rejected"], "succeeded")
    report = rich_report(8)
    api.publish(
        jobs["succeeded"], "quality_report.html", render_report(report, RECIPE).encode(), directory, "text/html"
    )
    for name in ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "README.md"):
        api.publish(jobs["succeeded"], name, name.encode() * 99, directory)
    summary = json.dumps(SUMMARY)
    api.execute("UPDATE jobs SET summary = %s, verdict = 'accepted' WHERE id = %s", [summary, jobs["succeeded"]])
    api.end(jobs["succeeded"], "succeeded")
    for worker, device, seen, job in (
        ("gpu-a1:7", "NVIDIA H100 80GB", "5 seconds", None),
        ("gpu-b2:3", "NVIDIA H100 80GB", "1 second", jobs["running"]),
        ("cpu-c3:1", "cpu", "2 hours", None),
    ):
        api.execute(
            "INSERT INTO workers (id, host, device, started_at, seen_at, job_id)"
            " VALUES (%s, %s, %s, now() - interval '3 days', now() - %s::interval, %s)",
            [worker, worker.partition(":")[0] + ".example", device, seen, job],
        )
    comparison = await _comparison(api, dataset)
    return jobs | {
        "webhook": webhook,
        "delivery": FAILED_DELIVERY,
        "disabled": DISABLED,
        "comparison": comparison,
        "dataset": shown,
        "audio": sound,
        "expired": expired,
    }


async def _comparison(api: Api, dataset: str) -> str:
    """Two of them are better than all others, one is at work, one has failed."""
    candidates = [
        {"scheme": scheme, "method": method} for scheme in ("W4A6", "W8A8") for method in ("rtn", "gptq", "qe")
    ]
    body = {"name": "which for receipts", "model": {"id": MODEL}, "calibration": {"dataset": dataset}}
    made = ok(await api.client.post("/v1/comparisons", json=body | {"candidates": candidates}), 201)
    figures = [(0.31, 5_402_000_000), (0.11, 5_402_000_000), (0.0214, 6_214_000_000), (0.03, 8_811_000_000)]
    for candidate, (kl, size) in zip(made["jobs"], figures, strict=False):
        api.start(candidate["job_id"])
        summary = SUMMARY | {"kl": kl, "bytes_after": size, "seconds": 2400}
        api.execute("UPDATE jobs SET summary = %s WHERE id = %s", [json.dumps(summary), candidate["job_id"]])
        api.end(candidate["job_id"], "succeeded")
    api.start(made["jobs"][4]["job_id"])
    api.start(made["jobs"][5]["job_id"])
    out = {"code": "out_of_memory", "message": "79 GiB are not enough for block 3", "retryable": True}
    api.end(made["jobs"][5]["job_id"], "failed", out)
    return str(made["id"])


def _webhooks(api: Api, webhook: str) -> None:
    """One that works with a log of every kind, and one that was disabled."""
    sent = [("delivered", 1, None), ("failed", 10, None), ("pending", 2, "1 hour")]
    payload = json.dumps({"type": "job.succeeded", "data": {"job": {"id": "job_…", "status": "succeeded"}}})
    for number, (status, attempts, due) in enumerate(sent):
        delivery, message = f"whd_{number:032x}", f"evt_{number:032x}_{number}"
        api.execute(
            "INSERT INTO webhook_deliveries (id, webhook_id, tenant, message_id, event_type, payload, status, attempts,"
            " due_at, finished_at, created_at) VALUES (%s, %s, 'default', %s, 'job.succeeded', %s, %s, %s,"
            " now() + %s::interval, CASE WHEN %s THEN now() END, now() - interval '1 hour' * %s)",
            [delivery, webhook, message, payload, status, attempts, due, due is None, 3 - number],
        )
        for attempt in range(1, attempts + 1):
            answered = status == "delivered"
            api.execute(
                "INSERT INTO webhook_attempts (delivery_id, number, tenant, status_code, error, milliseconds)"
                " VALUES (%s, %s, 'default', %s, %s, %s)",
                [delivery, attempt, 204 if answered else None, None if answered else "no answer within 15 s", 81],
            )
    api.execute(
        "INSERT INTO webhooks (id, tenant, url, event_types, secret, status, disabled_reason) SELECT %s, tenant,"
        " 'https://old.example.com/hook', event_types, secret, 'disabled', 'the endpoint answered 410 Gone'"
        " FROM webhooks WHERE id = %s",
        [DISABLED, webhook],
    )


def _blocks(
    api: Api, job: str, done: int, *, total: int = 28, attempts: dict[int, int] | None = None, scale: float = 1.0
) -> None:
    attempt = 1
    for block in range(done):
        attempt = (attempts or {}).get(block, attempt)
        routed = scale * 0.004 * (1 + 0.5 * math.sin(block / 3)) * (1 + block / 20)
        error = {"base": routed * 28, "shared": routed * 3.1, "routed": routed}
        groups = [{"name": f"layers.{block}.{kind}", "error": error} for kind in ("self_attn.qkv", "mlp.down")]
        api.execute(
            "INSERT INTO layers (job_id, block, attempt, seconds, report, files) VALUES (%s, %s, %s, 21.5, %s, '[]')",
            [job, block, attempt, json.dumps({"seconds_by_phase": {}, "groups": groups})],
        )
        api.append_event(job, "job.block", {"block": block, "blocks": total, "seconds": 21.5, "error": error})
    api.execute(
        "UPDATE jobs SET blocks_done = %s, blocks_total = %s, block_seconds = 21.5 WHERE id = %s", [done, total, job]
    )
    api.forecast(job, done=40 + 21.5 * done, left=60 + 21.5 * (total - done))


def _attempt(
    api: Api, job: str, number: int, outcome: str | None, resumed: int, done: int,
    error: dict[str, Any] | None = None, worker: str = "gpu-a1:7",
) -> None:  # fmt: skip
    api.execute(
        "INSERT INTO attempts (job_id, attempt, worker, started_at, ended_at, outcome, error, resumed_from_block,"
        " blocks_done) VALUES (%s, %s, %s, now() - interval '21.5 seconds' * %s, CASE WHEN %s THEN now() END, %s, %s,"
        " %s, %s)",
        [job, number, worker, done, outcome is not None, outcome, json.dumps(error) if error else None, resumed, done],
    )
