"""What every page must hold, whatever is on it: nothing cut off, nothing on top of another, no accessibility fault."""

from __future__ import annotations

import re
from typing import Any

from playwright.async_api import Page

from tests.browser.install import axe_script

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 320, "height": 700}  # 320: what WCAG 1.4.10 asks for

OF_THOUSANDS = re.compile(r"[0-9] [kMGT]B\b")
"""Sizes are said in powers of 1024, everywhere."""

TOO_WIDE = """() => {
  const edge = document.documentElement.clientWidth + 1;
  const scrolls = e => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  return [...document.querySelectorAll("body *")]
    .filter(e => e.getBoundingClientRect().right > edge && !scrolls(e.parentElement) && e.checkVisibility())
    .map(e => `${e.tagName} ${e.textContent.trim().slice(0, 60)}`);
}"""

CUT = """() => [...document.querySelectorAll("svg text")].filter(text => {
  const [a, b] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
  return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1;
}).map(text => text.textContent)"""

OVERLAPPING = """() => [...document.querySelectorAll("svg")].flatMap(drawing => {
  const texts = [...drawing.querySelectorAll("text")].filter(t => t.textContent.trim() && t.checkVisibility());
  const boxes = texts.map(t => t.getBoundingClientRect());
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, b] = [boxes[i], boxes[j]];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    // Line boxes are taller than letters: a third of a line may touch.
    if (wide > 1 && high > 0.34 * Math.min(a.height, b.height))
      found.push(`${texts[i].textContent} / ${texts[j].textContent}`);
  }
  return found;
})"""


async def assert_nothing_cut_or_overlapping(page: Page) -> None:
    assert await page.evaluate(TOO_WIDE) == []
    assert await page.evaluate(CUT) == []
    assert await page.evaluate(OVERLAPPING) == []


async def assert_one_unit(page: Page) -> None:
    assert OF_THOUSANDS.findall(await page.locator("body").text_content() or "") == []


async def assert_accessible(page: Page) -> None:
    """No serious or critical fault of WCAG 2.2 A and AA that axe can find."""
    await page.evaluate(axe_script())
    # Not into frames: the report's is sandboxed and lets no script in; it has tests of its own.
    rules = {
        "iframes": False,
        "resultTypes": ["violations"],
        "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    }
    found: dict[str, Any] = await page.evaluate("rules => axe.run(document, rules)", rules)
    faults = [
        f"{fault['impact']} {fault['id']}: {fault['help']}: {node['html'][:160]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"][:5]
    ]
    assert not faults, "\n".join(faults)
    assert found["passes"], "axe looked at nothing"
