"""The dashboard as its users meet it, in a real browser on a real service with a real supervisor behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from app.ui import session
from core.storage import storage_from_url
from demo.model import make_qwen2_vl
from tests.app.conftest import BOOTSTRAP_KEY, Api, ok
from tests.browser.dashboard import Dashboard, opened
from tests.browser.looks import assert_accessible, assert_nothing_cut_or_overlapping, assert_one_unit
from tests.services import wait_until
from worker.machine.context import WorkerContext
from worker.supervisor.supervisor import work

STANDIN = Path(__file__).parent.parent / "worker" / "standin.py"
ROW = json.dumps({"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]})


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    (tmp_path / "stage").mkdir()
    return tmp_path / "stage"


@contextlib.contextmanager
def worker(api: Api, stage: Path, name: str = "gpu-1") -> Iterator[None]:
    """A supervisor on the service's own ledger and storage; its runner is the stand-in that the stage directs."""
    context = WorkerContext(
        settings=api.settings.model_copy(update={"beat": 0.2}),
        storage=storage_from_url(api.settings.resolved_storage_url),
        worker=name,
        draining=threading.Event().is_set,
        notify=lambda job_id: None,
        runner=(sys.executable, str(STANDIN), str(stage)),
    )
    thread = threading.Thread(target=work, args=(context,))
    thread.start()
    try:
        yield
    finally:
        for held in stage.glob("hold-*"):
            held.unlink()
        thread.join(60)
        assert not thread.is_alive()


async def upload(dashboard: Dashboard, rows: str = ROW + "\n", name: str = "rows.jsonl") -> None:
    await dashboard.page.get_by_label("File").set_input_files(
        {"name": name, "mimeType": "application/jsonl", "buffer": rows.encode()}
    )
    await dashboard.page.get_by_role("button", name="Upload").click()


async def when(stage: Path, sign: str) -> None:
    await asyncio.to_thread(wait_until, (stage / sign).exists, what=f"the sign {sign}")


async def test_from_first_sight_to_a_watched_and_downloaded_job(dashboard: Dashboard, api: Api, stage: Path) -> None:
    page = dashboard.page
    await expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    await page.get_by_role("link", name="Upload them").click()
    await upload(dashboard)
    await page.get_by_role("link", name="Start a job with it").click()
    await page.get_by_label("Model", exact=True).fill("local/tiny")
    await page.get_by_label("Name").fill("first light")
    await page.get_by_label("Labels").fill("team=vision")
    await page.get_by_role("button", name="Submit the job").click()
    await expect(page.get_by_role("heading", name="first light")).to_be_visible()
    await expect(page.locator("[data-part=state]")).to_contain_text("waits for a worker")

    (stage / "hold-1").touch()
    (stage / "hold-3").touch()
    with worker(api, stage):
        await when(stage, "at-1")
        dots = page.locator(".chart .routed circle")
        await expect(dots).to_have_count(1)
        await expect(page.locator("[data-part=state]")).to_contain_text("1 of 4 blocks")
        figures = page.locator("#figures > summary")
        await figures.focus()
        (stage / "hold-1").unlink()
        await expect(dots).to_have_count(3)
        await expect(figures).to_be_focused()  # although its part of the page was changed
        assert await page.locator(".chart g").count() == 3  # base, + shared, + routed
        await expect(page.locator("#announcer")).to_have_text("running, 3 of 4 blocks")
        (stage / "hold-3").unlink()
        await expect(page.locator("[data-part=state] .pill").first).to_have_text("succeeded")

    await expect(page.locator("[data-part=result]")).to_contain_text("0.25")
    await expect(page.locator("[data-part=attempts]")).to_contain_text("Began on gpu-1; finished, 4 new blocks.")
    job_id = page.url.rpartition("/")[2]
    await expect(page.locator("[data-part=files]")).to_contain_text(f"hf download qe/{job_id}")
    await _commands_do_what_they_say(dashboard, stage, job_id)
    await page.get_by_text("2 files with their SHA-256").click()
    async with page.expect_download() as download:
        await page.get_by_role("link", name="model.safetensors").click()
    content = (await (await download.value).path()).read_bytes()
    listed = ok(await api.client.get(f"/v1/jobs/{job_id}/artifacts"))["data"]
    assert len(content) == next(one["bytes"] for one in listed if one["name"] == "model.safetensors")
    await page.get_by_role("link", name="Jobs", exact=True).first.click()
    row = page.get_by_role("row", name="first light")
    await expect(row).to_contain_text("succeeded")
    await expect(row).to_contain_text("team=vision")


async def _commands_do_what_they_say(dashboard: Dashboard, stage: Path, job_id: str) -> None:
    """Each is copied from the page and run as it is, by who has nothing but ``$KEY``."""
    await dashboard.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    environment = {"KEY": BOOTSTRAP_KEY, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": "."}
    compile(await dashboard.page.locator("#use pre").inner_text(), "snippet", "exec")
    commands = dashboard.page.locator("[data-part=files] section > .command")
    await expect(commands).to_have_count(3)
    for number, place in enumerate(("checkpoint", job_id, job_id)):
        button = commands.nth(number).get_by_role("button", name="Copy")
        await button.click()
        await expect(commands.nth(number).get_by_role("button")).to_have_text("Copied")
        command = await dashboard.page.evaluate("navigator.clipboard.readText()")
        there = stage / f"command-{number}"
        there.mkdir()
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-c", command), cwd=there, env=environment, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await asyncio.wait_for(shell.communicate(), 60)
        assert shell.returncode == 0, (command, said.decode())
        got = {path.name for path in (there / place).iterdir() if not path.name.startswith(".")}
        assert got == {"model.safetensors", "quality_report.json"}, command


async def test_a_lost_worker_is_told_in_words_and_a_running_job_can_be_cancelled(
    dashboard: Dashboard, api: Api, stage: Path
) -> None:
    rows = ok(await api.client.post("/v1/datasets", files={"file": ("rows.jsonl", ROW)}), 201)["id"]
    job = await submitted(api, model={"id": "local/tiny"}, calibration={"dataset": rows})
    (stage / "crash-2").touch()
    (stage / "hold-3").touch()
    await dashboard.open(f"/jobs/{job}")
    with worker(api, stage):
        await when(stage, "at-3")
        attempts = dashboard.page.locator("[data-part=attempts]")
        await expect(attempts).to_contain_text("the computing process died at block 2")
        await expect(attempts).to_contain_text("Resumed at block 2 on gpu-1; at work, 1 new block so far")
        await dashboard.page.get_by_role("button", name="Cancel").click()
        await expect(dashboard.page.locator("[data-part=state] .pill")).to_have_text("cancelled")
    await expect(attempts).to_contain_text("stopped on request at block 3")
    await dashboard.page.get_by_role("button", name="Retry").click()
    await expect(dashboard.page.locator("[data-part=state] .pill")).to_have_text("queued")


async def test_a_rejected_job_says_which_limit_it_missed_and_an_alias_does_not_lead_to_it(
    dashboard: Dashboard, api: Api, stage: Path
) -> None:
    rows = ok(await api.client.post("/v1/datasets", files={"file": ("rows.jsonl", ROW)}), 201)["id"]
    wanted = {"accept_if": {"max_kl": 0.1}, "alias": "team/digits"}
    job = await submitted(api, model={"id": "local/tiny"}, calibration={"dataset": rows}, **wanted)
    with worker(api, stage):
        await dashboard.open(f"/jobs/{job}")
        state = dashboard.page.locator("[data-part=state]")
        await expect(state).to_contain_text("Not accepted.")
    await expect(state).to_contain_text("KL is 0.25, over the limit")
    await expect(dashboard.page.locator("[data-part=files]")).to_contain_text(f"hf download qe/{job} ")


async def test_a_failed_job_says_why_and_a_like_one_starts_from_it(dashboard: Dashboard, api: Api) -> None:
    job = (await api.create_job(options={"experts": 4}, labels={"team": "vision"}))["id"]
    api.start(job)
    api.end(job, "failed", {"code": "invalid_calibration", "message": "row 3: <b>no image</b>", "retryable": False})
    await dashboard.open(f"/jobs/{job}")
    alert = dashboard.page.get_by_role("alert")
    await expect(alert).to_contain_text("invalid_calibration: row 3: <b>no image</b>")
    await expect(alert).to_contain_text("upload them as a new dataset, and fork the job with that.")
    await expect(dashboard.page.locator(".actions .first")).to_have_text("Fork")  # a retry would fail again
    await dashboard.page.get_by_role("link", name="Fork").click()
    await dashboard.page.get_by_role("link", name="Start a job like it").click()
    await expect(dashboard.page.get_by_label("Model", exact=True)).to_have_value("acme/tiny-vl")
    await expect(dashboard.page.get_by_label("Or a dataset on the hub")).to_have_value("acme/rows")
    await dashboard.page.get_by_text("Options, queue, target, your own task, limits").click()
    await expect(dashboard.page.get_by_label("Experts")).to_have_value("4")


async def test_a_form_that_is_refused_says_which_field_and_keeps_what_was_typed(dashboard: Dashboard, api: Api) -> None:
    page = dashboard.page
    await dashboard.open("/jobs/new")
    await page.get_by_label("Model", exact=True).fill("no slash")
    await page.get_by_text("Options, queue, target, your own task, limits").click()
    await page.get_by_label("Experts").fill("many")
    await page.get_by_label("Labels").fill("Team=x")
    await page.get_by_role("button", name="Submit the job").click()
    alert = page.get_by_role("alert")
    await expect(alert).to_contain_text("Model: write owner/name")
    await expect(alert).to_contain_text("Experts: Input should be a valid integer")
    await expect(alert).to_contain_text("Labels: label 'Team'")
    await expect(alert).to_contain_text("Calibration rows: choose an upload")
    await expect(page.get_by_label("Model", exact=True)).to_have_value("no slash")
    await expect(page.get_by_label("Model", exact=True)).to_have_attribute("aria-invalid", "true")
    await page.get_by_label("Model", exact=True).fill("local/nowhere")
    await page.get_by_label("Experts").fill("")
    await page.get_by_label("Labels").fill("")
    await page.get_by_label("Or a dataset on the hub").fill("acme/rows")
    await page.get_by_role("button", name="Submit the job").click()
    await expect(alert).to_contain_text("Model: no directory 'nowhere'")
    assert ok(await api.client.get("/v1/jobs"))["data"] == []
    dashboard.faults[:] = [fault for fault in dashboard.faults if "status of 422" not in fault]


async def test_a_plan_is_shown_before_anything_is_made_and_the_job_keeps_to_it(dashboard: Dashboard, api: Api) -> None:
    assert api.settings.model_root is not None
    model = api.settings.model_root / "planned"
    await asyncio.to_thread(make_qwen2_vl, model, hidden=64, blocks=2, intermediate=96, vision_depth=1, vision_width=32)
    rows = ok(await api.client.post("/v1/datasets", files={"file": ("rows.jsonl", f"{ROW}\n" * 8)}), 201)["id"]
    page = dashboard.page
    await dashboard.open(f"/jobs/new?dataset={rows}")
    await page.get_by_label("Model", exact=True).fill("local/planned")
    await page.get_by_role("button", name="Plan it first").click()
    plan = page.get_by_role("region", name="Plan")
    await expect(plan).to_contain_text("Nothing is known that would refuse this job.")
    await expect(plan).to_contain_text("exact")
    await expect(plan).to_contain_text("the checkpoint saves less than half")
    await assert_nothing_cut_or_overlapping(page)
    await assert_accessible(page)
    await assert_one_unit(page)
    assert ok(await api.client.get("/v1/jobs"))["data"] == []
    digest = await page.locator("input[name=plan]").get_attribute("value")
    await page.get_by_role("button", name="Submit exactly this").click()
    await expect(page.get_by_role("heading", name="local/planned")).to_be_visible()
    job = ok(await api.client.get("/v1/jobs"))["data"][0]
    body = {"model": {"id": "local/planned"}, "calibration": {"dataset": rows}, "scheme": "W4A6"}
    assert digest == ok(await api.client.post("/v1/jobs:plan", json=body))["digest"]
    assert job["status"] == "queued"


async def test_two_clicks_and_a_reload_make_one_job(dashboard: Dashboard, api: Api) -> None:
    await dashboard.open("/jobs/new")
    await dashboard.page.get_by_label("Model", exact=True).fill("acme/tiny-vl")
    await dashboard.page.get_by_label("Or a dataset on the hub").fill("acme/rows")
    form = await dashboard.page.locator("form.form").evaluate("form => [...new FormData(form)]")
    for _ in range(2):
        again = await dashboard.page.request.post(f"{dashboard.base}/jobs/new", form=dict(form))
        assert again.ok
    assert len(ok(await api.client.get("/v1/jobs"))["data"]) == 1


async def test_bad_rows_are_refused_with_their_number(dashboard: Dashboard) -> None:
    page = dashboard.page
    await dashboard.open("/datasets")
    await page.get_by_label("Name").fill("receipts")
    await page.get_by_label("for some days").check()
    await page.get_by_label("Days", exact=True).fill("7")
    await upload(dashboard, ROW + "\nnot json\n")
    await expect(page.get_by_role("alert")).to_contain_text("row 2")
    await expect(page.get_by_role("alert")).to_be_focused()
    await expect(page.get_by_label("File")).to_have_attribute("aria-invalid", "true")
    await expect(page.get_by_label("Name")).to_have_value("receipts")
    await expect(page.get_by_label("Days", exact=True)).to_have_value("7")
    dashboard.faults[:] = [fault for fault in dashboard.faults if "status of 422" not in fault]


async def test_a_key_is_shown_once_works_and_is_revoked(dashboard: Dashboard, api: Api) -> None:
    page = dashboard.page
    await dashboard.open("/keys")
    await page.get_by_label("Name").fill("ci")
    await page.get_by_label("Expires").select_option("7")
    for scope in ("jobs:read", "jobs:write", "datasets:read", "datasets:write"):
        await page.get_by_label(scope).uncheck()
    await page.get_by_role("button", name="Make the key").click()
    await expect(page.get_by_text("choose at least one scope")).to_be_visible()
    await expect(page.get_by_label("Name")).to_have_value("ci")
    await expect(page.get_by_label("Expires")).to_have_value("7")
    await expect(page.get_by_label("jobs:read")).not_to_be_checked()
    await page.get_by_label("jobs:read").check()
    await page.get_by_role("button", name="Make the key").click()
    key = await page.locator(".notice pre").inner_text()
    assert (await api.as_key(key).get("/v1/jobs")).status_code == 200
    await dashboard.open("/keys")
    assert key not in await page.content()
    await page.get_by_label("Revoke ci").click()
    await page.get_by_role("button", name="Revoke for good").click()
    await expect(page.get_by_role("row", name="ci")).to_contain_text("revoked")
    assert (await api.as_key(key).get("/v1/jobs")).status_code == 401
    dashboard.faults[:] = [fault for fault in dashboard.faults if "status of 422" not in fault]


async def test_jobs_are_filtered_by_one_click_and_a_wrong_filter_is_said_beside_it(
    dashboard: Dashboard, api: Api
) -> None:
    page = dashboard.page
    for name in ("one", "two"):
        job = (await api.create_job(name=name, labels={"team": name}))["id"]
    api.start(job)
    api.end(job, "failed", {"code": "timeout", "message": "it took too long", "retryable": True})
    await dashboard.open("/?label=team")
    await page.get_by_role("link", name="Failed").click()
    await expect(page.get_by_role("row", name="two")).to_contain_text("timeout: it took too long")
    await expect(page.get_by_role("row", name="one")).to_have_count(0)
    await expect(page.get_by_label("Label")).to_have_value("team")
    await page.get_by_label("Label").fill("x" * 300)
    await page.get_by_role("button", name="Filter").click()
    await expect(page.get_by_role("alert")).to_contain_text("Label: ")
    await expect(page.get_by_label("Label")).to_have_value("x" * 300)
    await expect(page.get_by_label("Label")).to_have_attribute("aria-invalid", "true")
    await page.go_back()
    await expect(page.get_by_role("row", name="two")).to_be_visible()
    dashboard.faults[:] = [fault for fault in dashboard.faults if "status of 422" not in fault]


async def test_a_wrong_key_is_told_and_an_ended_session_asks_again_and_comes_back(
    chromium: Browser, api: Api, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(chromium, api, base) as window:
        await window.sign_in("qe_wrong")
        await expect(window.page.get_by_role("alert")).to_have_text("This key is unknown, expired or revoked.")
        await window.open("/workers")
        assert "/login?next=%2Fworkers" in window.page.url
        monkeypatch.setattr(session, "SECONDS", -1)
        await window.page.get_by_label("API key").fill(BOOTSTRAP_KEY)
        await window.page.get_by_role("button", name="Sign in").click()
        await expect(window.page.get_by_role("alert")).to_contain_text("Your session has ended")
        monkeypatch.undo()
        await window.page.get_by_label("API key").fill(BOOTSTRAP_KEY)
        await window.page.get_by_role("button", name="Sign in").click()
        await expect(window.page.get_by_role("heading", name="Workers")).to_be_visible()
        await window.page.get_by_role("button", name="Sign out").click()
        await expect(window.page.get_by_role("heading", name="Sign in")).to_be_visible()
        await window.open("/workers")
        await expect(window.page.get_by_role("heading", name="Sign in")).to_be_visible()
        window.faults[:] = [fault for fault in window.faults if "status of 401" not in fault]


async def test_a_revoked_key_ends_its_session_while_a_job_is_watched(chromium: Browser, api: Api, base: str) -> None:
    made = ok(await api.client.post("/v1/keys", json={"name": "guest", "scopes": ["jobs:read"]}), 201)
    job = await submitted(api)
    async with opened(chromium, api, base) as window:
        await window.sign_in(made["key"])
        await window.open(f"/jobs/{job}")
        assert await window.page.get_by_role("button", name="Cancel").count() == 0  # the key may only read
        await window.open("/jobs/new")
        await expect(window.page.get_by_role("heading", name="The API key lacks a scope")).to_be_visible()
        await window.open(f"/jobs/{job}")
        await expect(window.page.locator("#connection")).to_have_text("Live")
        ok(await api.client.delete(f"/v1/keys/{made['id']}"))
        api.append_event(job, "job.warning", {"message": "x"})
        await expect(window.page.get_by_role("heading", name="Sign in")).to_be_visible()
        window.faults[:] = [fault for fault in window.faults if "status of 403" not in fault]


async def test_pages_can_be_read_without_scripts(chromium: Browser, api: Api, base: str) -> None:
    job = await submitted(api)
    async with opened(chromium, api, base, java_script_enabled=False) as window:
        await window.sign_in()
        await window.page.get_by_role("link", name="acme/tiny-vl").click()
        await expect(window.page.get_by_text("waits for a worker")).to_be_visible()
        await window.page.get_by_role("button", name="Cancel").click()
        await expect(window.page.locator("[data-part=state] .pill")).to_have_text("cancelled")
    assert ok(await api.client.get(f"/v1/jobs/{job}"))["status"] == "cancelled"


async def submitted(api: Api, **changes: Any) -> str:
    return str((await api.create_job(**changes))["id"])
