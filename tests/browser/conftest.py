"""A real headless Chromium for the session, and what is asked of every page."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright, expect

from tests.app.conftest import Api, api, app_database, database_url, served, settings
from tests.browser.dashboard import Dashboard, opened
from tests.browser.install import browser

__all__ = ["api", "app_database", "database_url", "settings"]


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    found = browser()
    expect.set_options(
        timeout=20_000
    )  # as an action may take: pages that look again every few seconds, on a busy machine
    async with async_playwright() as playwright:
        # No sandbox: the tests may run as root or in a container, and only open pages of ours.
        opened = await playwright.chromium.launch(
            executable_path=found.executable,
            args=["--no-sandbox", "--headless=shell", "--disable-dev-shm-usage"],
            env={**os.environ, **found.environment},
        )
        yield opened
        await opened.close()


@pytest.fixture
async def base(api: Api) -> AsyncIterator[str]:
    async with served(api) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
async def dashboard(chromium: Browser, api: Api, base: str) -> AsyncIterator[Dashboard]:
    async with opened(chromium, api, base) as window:
        await window.sign_in()
        await expect(window.page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
        yield window
