"""What is said on the command line arrives at the API. Each of these was written for an option that could be dropped
without another test noticing."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg.types.json import Jsonb

from tests.app.conftest import MODEL, Api
from tests.app.cutting import Cuts
from tests.app.test_client_cli import COMPARE, SUBMIT, Qe, network, qe, submitted  # noqa: F401 -- fixtures
from tests.services import wait_until

INPUTS = ["--revision", "v2", "--split", "validation"]


async def test_of_a_job(qe: Qe, api: Api) -> None:  # noqa: F811
    code, out, err = await qe(*SUBMIT, *INPUTS, "--json", "--alias", "acme/out", "--idempotency-key", "one")
    assert code == 0, err
    made = json.loads(out)
    spec = api.execute("SELECT spec FROM jobs")[0][0]
    assert (spec["model"]["revision"], spec["calibration"]["split"], made["alias"]) == ("v2", "validation", "acme/out")
    code, out, err = await qe("fork", made["id"], "--seed", "1", "--json", "--idempotency-key", "two", "--name", "n")
    assert code == 0, err
    fork = json.loads(out)
    assert (fork["forked_from"], fork["name"], fork["options"]["seed"]) == (made["id"], "n", 1)
    again = (await qe("fork", made["id"], "--seed", "1", "--json", "--idempotency-key", "two", "--name", "n"))[1]
    assert json.loads(again)["id"] == fork["id"]
    queue = ("--max-wait", "600", "--priority", "-5", "--device", "H100")
    other = await qe("submit", "--model", "acme/other", "--calibration", "acme/rows", *queue)
    fork_spec = json.loads((await qe("fork", other[1].strip(), "--seed", "2", "--json"))[1])
    assert (fork_spec["max_wait_s"], fork_spec["priority"], fork_spec["device"]) == (600, -5, "H100")
    await qe("cancel", fork_spec["id"])
    await qe("delete", fork_spec["id"])
    says = {"code": "no_such_device", "message": "a device of class H100 is asked for, and no worker alive has one"}
    api.execute("UPDATE jobs SET waiting = %s WHERE id = %s", [Jsonb(says), other[1].strip()])
    assert "no_such_device" in (await qe("jobs", "--model", "acme/other"))[1]
    assert f"waits        {says['message']}" in (await qe("jobs", other[1].strip()))[1]
    assert (await qe("jobs", "--model", "acme/other", "--json"))[1].count("\n") == 1
    listed = (await qe("jobs", "--model", "acme/other"))[1].splitlines()[1]
    assert listed.split()[0] == other[1].strip()
    queued = (await qe("jobs", "--status", "queued", "--json"))[1].splitlines()
    assert len(queued) == 3
    assert (await qe("jobs", "--status", "failed", "--json"))[1] == ""
    cancelled = [json.loads(line) for line in (await qe("cancel", made["id"], fork["id"], "--json"))[1].splitlines()]
    assert [job["status"] for job in cancelled] == ["cancelled", "cancelled"]
    retried = [json.loads(line) for line in (await qe("retry", made["id"], fork["id"], "--json"))[1].splitlines()]
    assert [(job["id"], job["status"]) for job in retried] == [(made["id"], "queued"), (fork["id"], "queued")]


async def test_submit_watches_to_the_end_of_the_job_and_ends_as_it_did(qe: Qe, api: Api) -> None:  # noqa: F811
    job_id = await submitted(qe, "--idempotency-key", "one")
    api.start(job_id)
    api.end(job_id, "failed", {"code": "timeout", "message": "it took too long", "retryable": True})
    code, out, err = await qe(*SUBMIT, "--idempotency-key", "one", "--watch")
    assert (code, out) == (3, f"{job_id}\n")
    assert f"{job_id} failed: error timeout: it took too long (qe retry {job_id} may help)" in err
    code, out, _ = await qe(*SUBMIT, "--idempotency-key", "one", "--watch", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, lines[0]["id"], lines[-1]["type"]) == (3, job_id, "job.failed")


async def test_fork_watches_to_the_end_of_the_new_job_too(qe: Qe, api: Api) -> None:  # noqa: F811
    fork = ["fork", await submitted(qe), "--seed", "1", "--idempotency-key", "one"]
    job_id = (await qe(*fork))[1].strip()
    api.start(job_id)
    api.end(job_id, "failed", {"code": "timeout", "message": "it took too long", "retryable": True})
    code, out, err = await qe(*fork, "--watch")
    assert (code, out, "it took too long" in err) == (3, f"{job_id}\n", True)


async def test_watch_ends_as_the_job_is_then_and_not_as_it_was(qe: Qe, api: Api, network: Cuts) -> None:  # noqa: F811
    job_id = await submitted(qe)
    network.requests.clear()
    watching = asyncio.create_task(qe("watch", job_id))
    asked = lambda: any(b"/events" in head for head in network.requests)  # noqa: E731
    await asyncio.to_thread(wait_until, asked, what="the events to be asked for")
    api.start(job_id)
    api.end(job_id, "failed", {"code": "timeout", "message": "it took too long", "retryable": False})
    code, _, err = await watching
    assert (code, "(qe retry" in err) == (3, False)


async def test_a_job_that_runs_is_listed_with_its_progress_and_shown_whole(qe: Qe, api: Api) -> None:  # noqa: F811
    job_id = await submitted(qe, "--name", "nightly", "--label", "team=a")
    api.start(job_id)
    api.execute("UPDATE jobs SET blocks_done = 7, blocks_total = 28 WHERE id = %s", [job_id])
    api.forecast(job_id, done=420, left=1260)
    line = (await qe("jobs"))[1].splitlines()[1]
    assert "fitting 7/28, 25%, 21 min left" in line
    shown = (await qe("jobs", job_id))[1]
    for title, value in (("name", "nightly"), ("labels", "team=a"), ("worker", "w1"), ("attempts", "1")):
        assert f"{title:<12} {value}" in shown
    assert f"{'started':<12} 20" in shown


async def test_of_a_comparison(qe: Qe, api: Api) -> None:  # noqa: F811
    said = ["--accept-max-kl", "0.5", "--label", "team=a", "--timeout", "600", "--name", "n", "--no-wait", "--json"]
    command = [*COMPARE, "W4A6", "auto,max-bytes=1000000", *INPUTS, *said, "--idempotency-key", "one"]
    code, out, err = await qe(*command)
    assert code == 0, err
    made = json.loads(out)
    assert made["name"] == "n"
    for (spec,) in api.execute("SELECT spec FROM jobs"):
        assert (spec["model"]["revision"], spec["calibration"]["split"]) == ("v2", "validation")
        assert (spec["accept_if"]["max_kl"], spec["labels"], spec["timeout_s"]) == (0.5, {"team": "a"}, 600)
    assert made["jobs"][1]["scheme"] == "auto"
    assert json.loads((await qe(*command))[1])["id"] == made["id"]
    assert [json.loads(line)["id"] for line in (await qe("compare", "--json"))[1].splitlines()] == [made["id"]]


async def test_of_a_dataset(qe: Qe, api: Api, network: Cuts, tmp_path: Path) -> None:  # noqa: F811
    row = json.dumps({"messages": [{"role": "user", "content": "q"}]}) + "\n"
    (tmp_path / "rows.jsonl").write_text(row * 3)
    upload = ("datasets", "upload", "rows.jsonl", "--name", "mine", "--expires-in", "2")
    for parts in ([], ["--part-size", "60", "--again"]):
        code, out, err = await qe(*upload, *parts, "--json")
        assert code == 0, err
        made = json.loads(out)
        left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
        assert (made["name"], timedelta(days=1, hours=23) < left < timedelta(days=2)) == ("mine", True)
    assert len(api.execute("SELECT id FROM datasets")) == 2
    assert len((await qe("datasets", "list", "--limit", "1", "--json"))[1].splitlines()) == 1
    code, _, err = await qe("datasets", "upload", "rows.jsonl", "--part-size", "0")
    assert (code, "--part-size" in err) == (2, True)
    code, out, _ = await qe("datasets", "show", made["id"], "--rows", "2")
    assert "expires      20" in out
    assert (out.count("\nrow "), "row 2:\n  user: q" in out) == (2, True)
    network.requests.clear()
    code, _, err = await qe("datasets", "show", made["id"], "--model", "local/absent", "--revision", "v2")
    assert (code, "absent" in err) == (1, True)
    assert b"/statistics?model=local%2Fabsent&revision=v2 " in network.requests[-1]


async def test_of_webhooks_and_keys(qe: Qe, api: Api) -> None:  # noqa: F811
    address = "https://hooks.example.com/qe"
    code, out, err = await qe(
        "webhooks", "create", address, "--description", "of ci", "--event", "job.failed", "--format", "teams", "--json"
    )
    assert code == 0, err
    hook = json.loads(out)
    assert (hook["description"], hook["event_types"], "secret" in hook) == ("of ci", ["job.failed"], True)
    await qe("webhooks", "ping", hook["id"])
    await qe("webhooks", "ping", hook["id"])
    assert (await qe("webhooks", "deliveries", hook["id"], "--status", "failed"))[1] == ""
    assert (await qe("webhooks", "deliveries", hook["id"], "--status", "pending", "--json"))[1].count("\n") == 2
    assert (await qe("webhooks", "deliveries", hook["id"], "--limit", "1"))[1].count("\n") == 1
    api.execute("UPDATE webhooks SET status = 'disabled', disabled_reason = 'the endpoint answered 410'")
    assert " disabled (the endpoint answered 410) " in (await qe("webhooks", "list"))[1]
    assert json.loads((await qe("webhooks", "list", "--json"))[1])["id"] == hook["id"]
    rotated = json.loads((await qe("webhooks", "rotate", hook["id"], "--keep", "60", "--json"))[1])
    assert datetime.fromisoformat(rotated["previous_secret_until"]) < datetime.now(UTC) + timedelta(seconds=90)
    key_id = (await qe("keys", "create", "ci", "--scope", "jobs:read"))[1].split()[0]
    await qe("keys", "rotate", key_id, "--keep", "0")
    line = next(line for line in (await qe("keys", "list"))[1].splitlines() if line.startswith(key_id))
    assert line.split()[1:3] == ["ci", "ended"]
    await qe("keys", "revoke", key_id)
    line = next(line for line in (await qe("keys", "list"))[1].splitlines() if line.startswith(key_id))
    assert line.split()[1:3] == ["ci", "revoked"]


async def test_another_service_is_asked_when_its_address_is_given(
    qe: Qe,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = os.environ["QE_URL"]
    monkeypatch.setenv("QE_URL", "http://127.0.0.1:9")
    code, _, err = await qe(*SUBMIT, "--url", address)
    assert code == 0, err
    assert MODEL in (await qe("jobs", "--url", address))[1]
