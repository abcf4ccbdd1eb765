"""Pages that stay open: through a restart of the service, beside another tab, for hours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Browser, Route, expect

from app.ui.formats import ago
from tests.app.conftest import Api, ok
from tests.app.test_client_terminal import serving
from tests.browser.dashboard import Dashboard, opened
from worker.embedded.servers import free_port


async def test_a_job_and_the_list_go_on_when_the_service_is_back(chromium: Browser, api: Api) -> None:
    port = free_port()
    job = (await api.create_job(name="first"))["id"]
    api.start(job)
    async with opened(chromium, api, f"http://127.0.0.1:{port}") as window:
        page = window.page
        with serving(api.settings, port):
            await window.sign_in()
            await expect(page.get_by_role("row", name="first")).to_be_visible()
            listed = await page.context.new_page()
            await listed.goto(window.base + "/")
            await window.open(f"/jobs/{job}")
            await expect(page.locator("#connection")).to_have_text("Live")
        await expect(page.locator("#connection")).to_have_text("Connection lost, trying again")
        await expect(listed.locator("#connection")).to_have_text("Connection lost, trying again")
        api.execute("UPDATE jobs SET blocks_done = 1, blocks_total = 4 WHERE id = %s", [job])
        api.forecast(job, done=2500, left=7500)
        api.append_event(job, "job.block", {"block": 0, "blocks": 4, "seconds": 1.0})
        await api.create_job(name="another")
        with serving(api.settings, port):
            await expect(page.locator("[data-part=state]")).to_contain_text("1 of 4 blocks")
            await expect(page.locator("#connection")).to_have_text("Live")
            assert await page.title() == "25 % · first: running · Quant Experts"
            # It counts on by itself, between events.
            await expect(page.locator("[data-part=state]")).to_contain_text("25 % · about 2 hours")
            left = page.locator("[data-left]")
            await expect(left).not_to_have_attribute("data-left", str(await left.get_attribute("data-left")))
            await expect(listed.get_by_role("row", name="another")).to_be_visible()
            await expect(listed.locator("#connection")).to_be_hidden()
            await page.goto("about:blank")
        window.faults[:] = [fault for fault in window.faults if "ERR_" not in fault]


async def test_a_stream_that_was_refused_is_asked_for_again(dashboard: Dashboard, api: Api) -> None:
    """A proxy that answers 502 for a moment: browsers give such a stream up for good."""
    job = (await api.create_job())["id"]
    page, refusals = dashboard.page, [502]

    async def gate(route: Route) -> None:
        await (route.fulfill(status=refusals.pop()) if refusals else route.continue_())

    await page.route("**/events*", gate)
    await dashboard.open(f"/jobs/{job}")
    await expect(page.locator("#connection")).to_have_text("Connection lost, trying again")
    await expect(page.locator("#connection")).to_have_text("Live")
    dashboard.faults[:] = [fault for fault in dashboard.faults if "502" not in fault]


async def test_a_page_of_a_finished_job_lives_again_when_another_tab_retried_it(dashboard: Dashboard, api: Api) -> None:
    job = (await api.create_job())["id"]
    api.start(job)
    api.end(job, "failed", {"code": "timeout", "message": "too slow", "retryable": True})
    page = dashboard.page
    await dashboard.open(f"/jobs/{job}")
    await expect(page.get_by_role("alert")).to_contain_text("Retry: it goes on after the last finished block.")
    ok(await api.client.post(f"/v1/jobs/{job}/retry"))
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # somebody comes back to this tab
    await expect(page.locator("[data-part=state] .pill")).to_have_text("queued")
    await expect(page.locator("#connection")).to_have_text("Live")
    ok(await api.client.post(f"/v1/jobs/{job}/cancel"))
    await expect(page.locator("[data-part=state] .pill")).to_have_text("cancelled")
    await expect(page.locator("#connection")).to_be_hidden()


async def test_the_list_shows_what_is_new_although_nothing_on_it_was_at_work(dashboard: Dashboard, api: Api) -> None:
    job = (await api.create_job(name="first"))["id"]
    ok(await api.client.post(f"/v1/jobs/{job}/cancel"))
    page = dashboard.page
    await page.clock.install()
    await dashboard.open("/")
    await expect(page.get_by_role("row", name="first")).to_be_visible()
    await api.create_job(name="another")
    await page.clock.run_for(16_000)
    await expect(page.get_by_role("row", name="another")).to_be_visible()
    await expect(page.get_by_role("link", name="Waiting 1")).to_be_visible()


async def test_ages_grow_as_the_service_says_them_and_point_at_the_time(
    chromium: Browser, api: Api, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    seconds = (0.4, 9.4, 10, 59, 61, 119, 3599, 3600, 3661, 7 * 3600 + 59, 36_061, 86_399, 90_061, 20 * 86_400)
    moments = [now - timedelta(seconds=sign * s) for s in seconds for sign in (1, -1)]
    async with opened(chromium, api, base, timezone_id="Asia/Kolkata", locale="en-GB") as window:
        page = window.page
        await page.clock.install(time=now)
        await page.clock.pause_at(now)
        await window.open("/login")
        said = await page.evaluate(
            "moments => moments.map(one => ago(new Date(one)))", [moment.isoformat() for moment in moments]
        )
        skew = await page.evaluate("skew") / 1000

        class Frozen(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
                return now + timedelta(seconds=skew)

        monkeypatch.setattr("app.ui.formats.datetime", Frozen)
        assert said == [ago(moment) for moment in moments]
        monkeypatch.undo()
        await window.sign_in()
        await page.clock.run_for(1000)
        job = (await api.create_job())["id"]
        api.execute("UPDATE jobs SET created_at = '2026-01-02T20:00:00Z' WHERE id = %s", [job])
        await window.open("/")
        title = await page.locator("tbody time").get_attribute("title")
        assert title == "2026-01-02 20:00:00 UTC; 3 Jan 2026, 01:30:00 here"
        api.execute("UPDATE jobs SET created_at = now() WHERE id = %s", [job])
        await window.open("/")
        await expect(page.locator("tbody time")).to_have_text("just now")
        await page.clock.fast_forward(125_000)
        await expect(page.locator("tbody time")).to_have_text("2 minutes ago")
