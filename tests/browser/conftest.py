"""A real headless Chromium for the session, and what is asked of every page."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

from tests.app.conftest import api, app_database, database_url, settings
from tests.browser.install import browser

__all__ = ["api", "app_database", "database_url", "settings"]


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    found = browser()
    async with async_playwright() as playwright:
        # No sandbox: the tests may run as root or in a container, and only open pages of ours.
        opened = await playwright.chromium.launch(
            executable_path=found.executable,
            args=["--no-sandbox", "--headless=shell", "--disable-dev-shm-usage"],
            env={**os.environ, **found.environment},
        )
        yield opened
        await opened.close()
