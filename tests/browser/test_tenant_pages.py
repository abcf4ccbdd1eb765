"""A tenant looks at its rows, at what it used, and at who did what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Browser, Route, expect

from tests.app.conftest import Api, ok
from tests.app.test_audio_headers import row as heard
from tests.app.test_audio_headers import wav
from tests.app.test_datasets import data_uri, jsonl, picture, row
from tests.browser.dashboard import Dashboard, opened
from tests.browser.looks import assert_accessible
from tests.models import make_model


async def test_rows_are_shown_with_their_images_and_figures(dashboard: Dashboard, api: Api) -> None:
    page = dashboard.page
    pictured = row(data_uri(picture(size=(320, 200))), text="<b>What</b> is it?")
    rows = [pictured, *(row(text=f"text {n}") for n in range(11))]
    made = ok(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", jsonl(*rows))}), 201)["id"]
    await dashboard.open("/datasets")
    await page.get_by_role("link", name="r.jsonl").click()
    statistics = page.get_by_role("region", name="Statistics")
    await expect(statistics).to_contain_text("1 with images, 11 of text alone")
    await expect(statistics).to_contain_text("1 PNG")
    await expect(page.get_by_text("<b>What</b> is it?").first).to_be_visible()
    image = page.get_by_role("img", name="Image 1 of row 1")
    await expect(image).to_have_js_property("naturalWidth", 320)
    await page.get_by_role("link", name="Next rows").click()
    await expect(page.get_by_role("heading", name="Row 12")).to_be_visible()
    assert await page.get_by_role("link", name="Next rows").count() == 0
    api.execute("UPDATE datasets SET expires_at = now() - interval '1 hour' WHERE id = %s", [made])
    await dashboard.open(f"/datasets/{made}")
    await expect(page.get_by_text("expired 1 hour ago")).to_be_visible()
    assert await page.get_by_role("link", name="Start a job with it").count() == 0


async def test_tokens_are_shown_as_a_model_counts_them(dashboard: Dashboard, api: Api) -> None:
    page = dashboard.page
    assert api.settings.model_root is not None
    make_model("qwen2_vl", api.settings.model_root / "counts", blocks=1)
    rows = [row(data_uri(picture(size=(84, 84)))), *(row(text=f"text {n}") for n in range(11))]
    made = ok(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", jsonl(*rows))}), 201)["id"]
    await dashboard.open(f"/datasets/{made}")
    statistics = page.get_by_role("region", name="Statistics")
    await expect(statistics).to_contain_text("estimated from the number of characters")
    await page.get_by_label("As a model counts them").fill("local/counts")
    await page.get_by_role("button", name="Count").click()
    await expect(statistics).to_contain_text("counted by the model's tokenizer")
    await expect(statistics.get_by_role("row", name="Images")).to_contain_text("as the model's processor cuts them")
    await expect(statistics).to_contain_text("No row is longer than the 2,048 tokens")
    await assert_accessible(page)
    await page.get_by_role("link", name="Next rows").click()
    await expect(page.get_by_label("As a model counts them")).to_have_value("local/counts")
    for wrong, words in (("local/absent", "no directory 'absent'"), ("a b", "a b is no model id")):
        await page.get_by_label("As a model counts them").fill(wrong)
        await page.get_by_role("button", name="Count").click()
        await expect(page.get_by_role("alert")).to_contain_text(words)
        await expect(statistics).to_contain_text("estimated from the number of characters")


async def test_audio_of_a_row_can_be_played(dashboard: Dashboard, api: Api) -> None:
    page = dashboard.page
    content = jsonl(heard(wav(seconds=1.5, channels=2), language="de"))
    made = ok(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", content)}), 201)["id"]
    await dashboard.open(f"/datasets/{made}")
    player = page.get_by_label("Audio 1 of row 1")
    await expect(page.get_by_role("figure")).to_contain_text("WAV, 1.5 seconds, 16,000 Hz, stereo")
    await player.evaluate("player => { player.muted = true; player.load(); return player.play() }")
    await expect(player).to_have_js_property("duration", 1.5)
    await player.evaluate("player => { player.currentTime = 1 }")
    await expect(player).to_have_js_property("ended", True)
    await assert_accessible(page)


async def test_only_the_chosen_field_of_an_expiry_shows_where_css_has_no_has(dashboard: Dashboard) -> None:
    page = dashboard.page

    async def older(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(response=answer, body=(await answer.text()).replace(":has(", ":unknown("))

    await page.route("**/dashboard.css*", older)
    await dashboard.open("/datasets")
    days, until = page.get_by_label("Days", exact=True), page.get_by_label("Last day")
    await expect(days).to_be_hidden()
    await expect(until).to_be_hidden()
    await page.get_by_label("until a day").check()
    await expect(until).to_be_visible()
    await expect(days).to_be_hidden()


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
async def test_how_long_rows_are_kept_is_said_with_the_upload_and_changed(
    chromium: Browser, api: Api, base: str, scripts: bool
) -> None:
    async with opened(chromium, api, base, java_script_enabled=scripts) as window:
        page = window.page
        await window.sign_in()
        await window.open("/datasets")
        await expect(page.get_by_label("Days", exact=True)).to_be_hidden()
        await page.get_by_label("for some days").check()
        await page.get_by_label("Days", exact=True).fill("7")
        await page.get_by_label("File").set_input_files({"name": "r.jsonl", "mimeType": "", "buffer": jsonl(row())})
        await page.get_by_role("button", name="Upload").click()
        await expect(page.get_by_role("row", name="r.jsonl")).to_contain_text("expires in 7 days")
        await page.get_by_role("link", name="r.jsonl").click()
        await page.get_by_text("Change how long it is kept").click()
        await expect(page.get_by_label("until a day")).to_be_checked()
        await page.get_by_label("Last day").fill("2020-01-01")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("alert")).to_contain_text("2020-01-01 is over")
        await expect(page.get_by_label("Last day")).to_have_value("2020-01-01")
        if scripts:
            await assert_accessible(page)
        await page.get_by_label("Last day").fill(f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}")
        await page.get_by_role("button", name="Save").click()
        await expect(page.locator(".heading")).to_contain_text("expires in 30 days")
        await page.get_by_text("Change how long it is kept").click()
        await page.get_by_label("until they are deleted").check()
        await page.get_by_role("button", name="Save").click()
        await expect(page.locator(".heading")).to_contain_text("kept until it is deleted")
        window.faults[:] = [fault for fault in window.faults if "status of 422" not in fault]


async def test_the_audit_log_is_filtered_and_paged_and_says_what_is_wrong(dashboard: Dashboard, api: Api) -> None:
    page = dashboard.page
    job = [(await api.create_job())["id"] for _ in range(21)][-1]
    ok(await api.client.post(f"/v1/jobs/{job}/cancel"))
    await page.get_by_role("link", name="Audit").click()
    await page.get_by_role("link", name="Older").click()
    await expect(page.get_by_role("row", name="job.created")).to_have_count(2)
    await page.get_by_label("Act").select_option("job.cancelled")
    await page.get_by_role("button", name="Filter").click()
    await expect(page.get_by_role("row", name="job.cancelled")).to_have_count(1)
    await page.get_by_label("Thing").fill("Job 7")
    await page.get_by_role("button", name="Filter").click()
    await expect(page.get_by_role("alert")).to_contain_text("Thing: small letters, digits")
    await page.get_by_role("link", name="Show all").click()
    await page.get_by_role("link", name=job[-8:]).first.click()
    await expect(page.get_by_role("heading", name="acme/tiny-vl")).to_be_visible()
    dashboard.faults[:] = [fault for fault in dashboard.faults if "status of 422" not in fault]


async def test_usage_stands_beside_its_limits(dashboard: Dashboard, api: Api) -> None:
    page = dashboard.page
    await page.get_by_role("link", name="Usage").click()
    await expect(page.get_by_text("No usage in this period.")).to_be_visible()
    started = (await api.create_job())["id"]
    for _ in range(2):
        await api.create_job()
    api.start(started)
    api.execute("INSERT INTO tenant_limits (tenant, max_queued_jobs, max_running_jobs) VALUES ('default', 2, 9)")
    await dashboard.open("/usage?days=365")
    quotas = page.get_by_role("region", name="Now, and the limits")
    await expect(quotas).to_contain_text("Jobs that wait 2 of 2")
    await expect(quotas.get_by_text("The limit is reached.")).to_have_count(1)
    await expect(quotas).to_contain_text("Jobs at work 1 of 9")
    await expect(page.get_by_role("table")).to_contain_text("3")
