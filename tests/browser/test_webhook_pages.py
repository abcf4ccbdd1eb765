"""A webhook from its making to its mending, with the keeper's own postman and an endpoint that has bad days."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest
from playwright.async_api import expect
from standardwebhooks import Webhook

from core.settings import Settings
from tests.app.conftest import Api
from tests.browser.dashboard import Dashboard
from tests.worker.endpoint import OK, listening
from worker.webhooks.delivery import deliver

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
GONE = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_http": True, "webhook_allow_private": True})


@contextlib.contextmanager
def postman(api: Api) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=deliver, args=(api.settings, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


async def test_a_webhook_is_made_tried_disabled_by_its_endpoint_and_mended(dashboard: Dashboard, api: Api) -> None:
    page = dashboard.page
    await page.get_by_role("link", name="Webhooks").click()
    await expect(page.get_by_text("No webhooks yet.")).to_be_visible()
    await page.get_by_role("button", name="Make the webhook").click()
    await expect(page.get_by_text("give the address that is to be told")).to_be_visible()
    async with listening(answers=[BUSY, GONE, OK]) as endpoint:
        await page.get_by_label("Address").fill(f"http://127.0.0.1:{endpoint.port}/hook")
        for kind in ("succeeds", "fails", "is cancelled"):
            await page.get_by_label(kind).uncheck()
        await page.get_by_role("button", name="Make the webhook").click()
        await expect(page.get_by_text("choose at least one event")).to_be_visible()
        await page.get_by_label("fails").check()
        await page.get_by_role("button", name="Make the webhook").click()
        secret = await page.locator(".notice pre").inner_text()
        await page.get_by_role("button", name="Send a test").click()
        assert secret not in await page.content()
        await expect(page.get_by_role("row", name="webhook.ping")).to_contain_text("pending")
        with postman(api):
            await page.get_by_role("link", name="webhook.ping").click()
            await expect(page.get_by_role("row", name="1 503")).to_be_visible()
            Webhook(secret).verify(endpoint.body(), endpoint.headers())
            api.execute("UPDATE webhook_deliveries SET due_at = clock_timestamp()")
            await expect(page.get_by_role("row", name="2 410")).to_be_visible()
            await expect(page.locator("[data-part=state]")).to_contain_text("given up")
            await page.get_by_label("Main").get_by_role("link", name="Webhooks").click()
            await page.get_by_role("link", name="127.0.0.1").click()
            await expect(page.get_by_role("note")).to_contain_text("Why: the endpoint answered 410 Gone")
            await page.get_by_role("button", name="Enable").click()
            await page.get_by_role("button", name="again").click()
            await expect(page.locator("[data-part=state] .pill")).to_have_text("delivered")
        await page.get_by_role("link", name="wh_…").click()
        await page.get_by_role("button", name="Rotate the secret").click()
        fresh = await page.locator(".notice pre").inner_text()
        await page.get_by_role("button", name="Send a test").click()
        with postman(api):
            async with asyncio.timeout(20):
                while len(endpoint.requests) < 4:
                    await asyncio.sleep(0.02)
        for each in (secret, fresh):
            Webhook(each).verify(endpoint.body(), endpoint.headers())
    await page.get_by_role("link", name="Webhooks").first.click()
    newest = api.execute("SELECT status FROM webhook_deliveries ORDER BY created_at DESC, id DESC LIMIT 1")[0][0]
    await page.get_by_role("row").last.get_by_role("link", name=newest).click()
    await page.locator(".crumbs").get_by_role("link").last.click()
    await page.get_by_label("Delete the webhook and its log").click()
    await page.get_by_role("button", name="Delete it with its log").click()
    await expect(page.get_by_text("No webhooks yet.")).to_be_visible()
    dashboard.faults[:] = [fault for fault in dashboard.faults if "status of 422" not in fault]
