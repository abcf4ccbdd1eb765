"""Rows sent from the form of a new job: images put inside, what was typed kept, the plan beside the fields."""

from __future__ import annotations

import json
import os
from pathlib import Path

from playwright.async_api import expect

from tests.app.conftest import Api
from tests.browser.dashboard import Dashboard
from tests.browser.looks import assert_accessible, assert_nothing_cut_or_overlapping
from tests.rows import picture


async def test_rows_with_images_in_a_folder_are_sent_from_the_form(
    dashboard: Dashboard, api: Api, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(seed=number))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dot."}]
    rows = [{"image": f"images/{number}.png", "conversations": turns} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = dashboard.page
    await dashboard.sign_in()
    await dashboard.open("/jobs/new")
    await page.get_by_label("Model", exact=True).fill("acme/typed")
    await page.get_by_role("button", name="Smallest").click()
    await expect(page.get_by_label("Scheme")).to_have_value("W3A16")
    await page.get_by_label("File of rows").set_input_files(tmp_path / "rows.jsonl")
    await page.get_by_label("Folder of its images").set_input_files(tmp_path / "data")
    await page.get_by_role("button", name="Upload and choose").click()
    await expect(page.locator("[data-upload] [data-says]")).to_have_text("Uploaded, checked and chosen.")
    await expect(page.get_by_label("Model", exact=True)).to_have_value("acme/typed")
    ((dataset, images),) = api.execute("SELECT id, images FROM datasets")
    assert images == 3
    await expect(page.get_by_label("Uploaded dataset")).to_have_value(dataset)
    sent = (await api.client.get(f"/v1/datasets/{dataset}/rows/2/images/0")).content
    assert sent == picture(seed=1)
    await assert_nothing_cut_or_overlapping(page)
    await assert_accessible(page)
    if os.environ.get("QE_SCREENSHOTS"):
        for scheme in ("light", "dark"):
            for width in (1440, 390):
                await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
                await page.set_viewport_size({"width": width, "height": 900})
                shot = Path(os.environ["QE_SCREENSHOTS"]) / f"new-job-{scheme}-{width}.png"
                await page.screenshot(path=shot, full_page=True)
