"""Every page of the dashboard on every screen: nothing cut off, nothing overlapping, nothing that axe calls serious.

With QE_SCREENSHOTS=<directory> every page is also photographed: ``make screenshots``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from playwright.async_api import Browser, Page, ViewportSize, expect

from core.ledger.states import JobStatus
from tests.app.conftest import Api, served
from tests.app.tenant_cases import DASHBOARD
from tests.browser.content import fill
from tests.browser.dashboard import Dashboard, opened
from tests.browser.looks import NARROW, WIDE, assert_accessible, assert_nothing_cut_or_overlapping, assert_one_unit

PHOTOS = os.environ.get("QE_SCREENSHOTS")
PHONE = {"width": 390, "height": 844}
PAGES = {
    "jobs": "/", **{state: f"/jobs/{{{state}}}" for state in (*JobStatus, "rejected")}, "fork": "/jobs/{failed}/fork",
    "comparisons": "/comparisons", "new-comparison": "/comparisons/new",
    "comparison": "/comparisons/{comparison}", "datasets": "/datasets", "dataset": "/datasets/{dataset}",
    "dataset-audio": "/datasets/{audio}", "dataset-expired": "/datasets/{expired}", "workers": "/workers",
    "usage": "/usage", "webhooks": "/webhooks", "webhook": "/webhooks/{webhook}",
    "webhook-disabled": "/webhooks/{disabled}", "delivery": "/webhooks/{webhook}/deliveries/{delivery}",
    "keys": "/keys", "audit": "/audit",
}  # fmt: skip
"""Name → path, with the names of what ``content.fill`` makes."""
OPENED_ON_THE_WAY = ("/login", "/jobs/new")
IN_THE_DARK = ("jobs", "running", "keys", "refused-job")
"""Pages that together have every colour; axe takes seconds a page."""


async def assert_looks(page: Page, name: str) -> None:
    """Light and dark, wide and narrow, on paper."""
    await page.wait_for_load_state("load")
    await assert_one_unit(page)
    for scheme, size in (("light", WIDE), ("dark", WIDE), ("light", NARROW)):
        await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", media="screen")
        await page.set_viewport_size(ViewportSize(**size))
        await assert_nothing_cut_or_overlapping(page)
        if size is NARROW and PHOTOS:
            await page.set_viewport_size(ViewportSize(**PHONE))
        await photograph(page, f"{name}-{scheme}{'-narrow' if size is NARROW else ''}")
        if size is WIDE and (scheme == "light" or name in IN_THE_DARK):
            await assert_accessible(page)
    await page.set_viewport_size(ViewportSize(width=688, height=970))
    await page.emulate_media(color_scheme="light", media="print")
    await assert_nothing_cut_or_overlapping(page)
    await photograph(page, f"{name}-print")
    await page.emulate_media(media="screen")
    await page.set_viewport_size(ViewportSize(**WIDE))


async def photograph(page: Page, name: str) -> None:
    if PHOTOS:
        Path(PHOTOS).mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=Path(PHOTOS) / f"{name}.png", full_page=True)


async def test_every_page_looks_right_for_everyone(chromium: Browser, api: Api, tmp_path: Path) -> None:
    async with served(api) as client:
        base = str(client.base_url).rstrip("/")
        async with opened(chromium, api, base) as window:
            await window.open("/login")
            await assert_looks(window.page, "login")
            await window.sign_in()
            await expect(window.page.get_by_role("heading", name="No jobs yet")).to_be_visible()
            await assert_looks(window.page, "empty")
            made = await fill(api, tmp_path)
            for name, path in PAGES.items():
                await window.open(path.format(**made))
                if name == JobStatus.SUCCEEDED:  # a photograph of the whole page leaves the frame blank
                    report = window.page.frame_locator("iframe.report")
                    await expect(report.get_by_role("heading").first).to_be_visible()
                await assert_looks(window.page, name)
            await _refusals(window, made["dataset"])


def test_every_page_and_every_state_of_a_job_is_looked_at() -> None:
    no_pages = ("/static/", "/events", "/files/", "/archive", "/images/", "/audio/")
    no_pages += ("/report",)  # lets no script in, axe's neither: test_quality_report.py looks at it as a file
    routes = {route.removeprefix("GET ") for route in DASHBOARD if route.startswith("GET ")}
    pages = {route for route in routes if not any(part in route for part in no_pages)}
    looked = {re.sub(r"\{[^}]*\}", "{}", path) for path in (*PAGES.values(), *OPENED_ON_THE_WAY)}
    assert {re.sub(r"\{[^}]*\}", "{}", route) for route in pages} == looked
    states = {name for name, path in PAGES.items() if path == f"/jobs/{{{name}}}"}
    assert states == {*JobStatus, "rejected"}


async def _refusals(window: Dashboard, dataset: str) -> None:
    await window.open(f"/datasets/{dataset}")
    await window.page.get_by_text("Change how long it is kept").click()
    await window.page.get_by_label("for some days").check()
    await window.page.get_by_label("Days", exact=True).fill("many")
    await window.page.get_by_role("button", name="Save").click()
    await expect(window.page.get_by_role("alert")).to_be_visible()
    await assert_looks(window.page, "refused-keeping")
    await window.open("/jobs/new")
    await window.page.get_by_text("Options, queue, target, your own task, limits").click()
    await assert_looks(window.page, "new-job")
    await window.page.get_by_label("Model", exact=True).fill("no slash")
    await window.page.get_by_label("Scheme").select_option("auto")
    await window.page.get_by_role("button", name="Submit the job").click()
    await expect(window.page.get_by_role("alert")).to_be_visible()
    await assert_looks(window.page, "refused-job")
    await window.open("/jobs/job_ffffffffffffffffffffffffffffffff")
    await assert_looks(window.page, "not-found")
    window.faults[:] = [fault for fault in window.faults if "status of 4" not in fault]


async def test_everything_can_be_reached_by_keyboard(chromium: Browser, api: Api, tmp_path: Path) -> None:
    async with served(api) as client, opened(chromium, api, str(client.base_url).rstrip("/")) as window:
        page = window.page
        await window.open("/login")
        await expect(page.get_by_label("API key")).to_be_focused()
        await page.keyboard.type(client.headers["Authorization"].removeprefix("Bearer "))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="New job")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="New job")).to_be_visible()
        await page.set_viewport_size(ViewportSize(**NARROW))
        menu, there = page.get_by_role("button", name="Menu"), page.get_by_role("link", name="Webhooks")
        await expect(there).to_be_hidden()
        await menu.focus()
        await page.keyboard.press("Enter")
        await expect(there).to_be_visible()
        await assert_nothing_cut_or_overlapping(page)
        await assert_accessible(page)
        await photograph(page, "menu-light-narrow")
        await page.keyboard.press("Escape")
        await expect(there).to_be_hidden()
        await expect(menu).to_be_focused()
        await page.keyboard.press("Enter")
        for _ in range(12):
            if await there.evaluate("link => link === document.activeElement"):
                break
            await page.keyboard.press("Tab")
        await expect(there).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Webhooks")).to_be_visible()
