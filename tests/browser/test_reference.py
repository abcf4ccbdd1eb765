"""``/docs``: Swagger UI from this service alone, under the dashboard's policy, and a request tried on it."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Browser, expect

from tests.app.conftest import BOOTSTRAP_KEY, Api
from tests.browser.dashboard import opened

# A foreign request, a broken policy or an error in the console fails the test: see ``opened``.


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_contract_is_shown_and_can_be_tried(chromium: Browser, api: Api, base: str, scheme: str) -> None:
    job = await api.create_job()
    async with opened(chromium, api, base, color_scheme=scheme) as window:
        page = window.page
        await window.open("/docs")
        await expect(page.get_by_role("heading", name=re.compile("^Quant Experts"))).to_be_visible()
        assert await page.locator("html.dark-mode").count() == (scheme == "dark")
        await page.get_by_role("button", name="Authorize", exact=True).click()
        await page.get_by_role("textbox", name="auth-bearer-value").fill(BOOTSTRAP_KEY)
        await page.get_by_role("button", name="Apply credentials").click()
        await page.get_by_role("button", name="Close").first.click()
        await page.locator("#operations-jobs-jobs_list .opblock-summary-control").click()
        await page.get_by_role("button", name="Execute").click()
        await expect(page.locator(".live-responses-table td.response-col_status").last).to_have_text("200")
        await expect(page.locator(".live-responses-table")).to_contain_text(job["id"])
        await page.screenshot(path=f"/tmp/ref-{scheme}.png")


async def test_without_scripts_it_says_where_the_contract_is(chromium: Browser, api: Api, base: str) -> None:
    async with opened(chromium, api, base, java_script_enabled=False) as window:
        await window.open("/docs")
        await expect(window.page.get_by_role("link", name="openapi.json").last).to_be_visible()
        assert "needs JavaScript" in await window.text()
