"""A dashboard in a browser: signed in, every request, console message and broken policy noted down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, Page, ViewportSize

from tests.app.conftest import BOOTSTRAP_KEY, Api
from tests.browser.looks import WIDE


@dataclass
class Dashboard:
    """``faults``: what a clean run has none of."""

    api: Api
    base: str
    page: Page
    faults: list[str] = field(default_factory=list)

    async def open(self, path: str) -> None:
        await self.page.goto(self.base + path)

    async def sign_in(self, key: str = BOOTSTRAP_KEY) -> None:
        await self.open("/login")
        await self.page.get_by_label("API key").fill(key)
        await self.page.get_by_role("button", name="Sign in").click()

    async def text(self) -> str:
        return await self.page.locator("main").inner_text()


@asynccontextmanager
async def opened(chromium: Browser, api: Api, base: str, **options: Any) -> AsyncIterator[Dashboard]:
    """A window of its own. Ends with an error when the page had one: in the console, a policy, a foreign request."""
    context = await chromium.new_context(viewport=ViewportSize(**WIDE), **options)
    context.set_default_timeout(20_000)
    page = await context.new_page()
    dashboard = Dashboard(api, base, page)
    page.on("console", lambda said: dashboard.faults.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: dashboard.faults.append(str(error)))
    page.on("request", lambda request: _note_foreign(dashboard, request.url))
    try:
        yield dashboard
    finally:
        await context.close()
    assert not dashboard.faults, "\n".join(dashboard.faults)


def _note_foreign(dashboard: Dashboard, url: str) -> None:
    if not url.startswith((dashboard.base, "data:")):
        dashboard.faults.append(f"request to {url}")
