"""The quality report in a real browser: on a screen, light and dark, on a phone, on paper."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser, Page, ViewportSize

from quant_experts.report.page import render_report
from tests.browser.looks import NARROW, WIDE, assert_accessible, assert_nothing_cut_or_overlapping, assert_one_unit
from tests.quant_experts.reports import RECIPE, rich_report


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "quality_report.html"
    path.write_text(render_report(rich_report(), RECIPE), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
async def page(chromium: Browser) -> AsyncIterator[Page]:
    opened = await chromium.new_page(viewport=ViewportSize(**WIDE))
    yield opened
    await opened.close()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_report_is_whole_on_every_screen(
    page: Page, report_page: str, size: dict[str, int], scheme: Literal["light", "dark"]
) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await page.set_viewport_size(ViewportSize(**size))
    await page.emulate_media(color_scheme=scheme)
    await page.goto(report_page)
    await page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    await assert_nothing_cut_or_overlapping(page)
    await assert_one_unit(page)
    assert requests == [report_page]


@pytest.mark.parametrize(("scheme", "size"), [("light", NARROW), ("dark", WIDE)], ids=["light", "dark"])
async def test_axe_finds_no_serious_fault_in_the_report(
    page: Page, tmp_path: Path, scheme: Literal["light", "dark"], size: dict[str, int]
) -> None:
    path = tmp_path / "short.html"
    path.write_text(render_report(rich_report(2), RECIPE), encoding="utf-8")
    await page.set_viewport_size(ViewportSize(**size))
    await page.emulate_media(color_scheme=scheme)
    await page.goto(path.as_uri())
    await page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    await assert_accessible(page)


async def test_the_report_is_whole_on_paper(page: Page, report_page: str) -> None:
    await page.emulate_media(media="print", color_scheme="dark")
    await page.set_viewport_size(ViewportSize(width=688, height=970))  # A4 less its margins
    await page.goto(report_page)
    await assert_nothing_cut_or_overlapping(page)
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


async def test_what_a_reader_sees_is_what_the_report_says(page: Page, report_page: str) -> None:
    """Whatever styles do: no figure is hidden, but for those inside the closed list of all groups."""
    await page.goto(report_page)
    hidden = await page.locator("data:not(details data)").evaluate_all(
        "all => all.filter(one => !one.checkVisibility() || one.getBoundingClientRect().width < 2).length"
    )
    assert hidden == 0
    kl = page.locator('[data-at="quality.kl"]').first
    assert float(await kl.get_attribute("value") or "nan") == rich_report().quality.kl
