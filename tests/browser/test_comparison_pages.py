"""Forks and comparisons as their users meet them."""

from __future__ import annotations

import json

from playwright.async_api import expect

from quant_experts.spec.methods import METHOD_VERSION
from tests.app.conftest import Api, ok
from tests.app.test_forks import leave_blocks
from tests.browser.dashboard import Dashboard


def succeed(api: Api, job: str, *, kl: float, size: int) -> None:
    summary = {"kl": kl, "bytes_after": size, "bytes_before": 4_000_000, "top1_agreement": 0.9, "seconds": 70}
    api.start(job)
    api.execute("UPDATE jobs SET summary = %s WHERE id = %s", [json.dumps(summary), job])
    api.end(job, "succeeded")


async def test_a_fork_says_what_it_takes_over_and_keeps_what_the_form_does_not_have(
    dashboard: Dashboard, api: Api
) -> None:
    page = dashboard.page
    job = (await api.create_job(name="first", options={"experts": 4, "smoothing": "awq", "vision": "quantize"}))["id"]
    leave_blocks(api, job, 3)
    api.start(job)
    api.end(job, "failed", {"code": "timeout", "message": "too slow", "retryable": False})
    await dashboard.open(f"/jobs/{job}")
    await page.get_by_role("link", name="Fork").click()
    found = page.locator("#found")
    await expect(found).to_contain_text("yes 3 finished blocks: it goes on after them.")
    await page.get_by_text("Options, queue, target, your own task, limits").click()
    await page.get_by_label("Important channels").fill("32")  # the default, written out
    await page.get_by_role("button", name="What would it take over?").click()
    await expect(found).to_contain_text("yes 3 finished blocks: it goes on after them.")
    await page.get_by_label("Scheme").select_option("W4A8")
    await page.get_by_role("button", name="What would it take over?").click()
    await expect(found).to_contain_text("yes Calibration")
    await expect(found).to_contain_text("no Finished blocks: scheme is changed, and every block depends on that.")
    await page.get_by_text("Options, queue, target, your own task, limits").click()
    await page.get_by_label("Experts").fill("many")
    await page.get_by_role("button", name="Fork", exact=True).click()
    await expect(page.get_by_role("alert")).to_contain_text("Experts: Input should be a valid integer")
    await page.get_by_label("Experts").fill("2")
    await page.get_by_label("KL at most", exact=True).fill("0.25")
    await page.get_by_role("button", name="Fork", exact=True).click()
    await expect(page.get_by_text("fork of")).to_be_visible()
    fork = ok(await api.client.get("/v1/jobs"))["data"][0]
    assert (fork["forked_from"], fork["scheme"], fork["name"]) == (job, "W4A8", "first")
    options = {name: value for name, value in fork["options"].items() if value is not None}
    assert options == {
        "experts": 2,
        "smoothing": "awq",
        "vision": "quantize",
        "important_channels": 32,
        "method_version": METHOD_VERSION,
    }
    assert fork["accept_if"]["max_kl"] == 0.25
    dashboard.faults[:] = [fault for fault in dashboard.faults if "status of 422" not in fault]


async def test_a_comparison_is_ticked_and_grows_while_it_is_watched(dashboard: Dashboard, api: Api) -> None:
    page = dashboard.page
    job = (await api.create_job(scheme="W5A8", method="gptq", options={"seed": 5}))["id"]
    await dashboard.open(f"/jobs/{job}")
    await page.get_by_role("link", name="Compare", exact=True).click()
    await expect(page.get_by_label("Other schemes")).to_have_value("W5A8")
    await page.get_by_role("button", name="Start the comparison").click()
    await expect(page.get_by_role("alert")).to_contain_text("Schemes and methods: tick two schemes, or two methods")
    await page.get_by_label("W4A6").check()
    await page.get_by_label("Other schemes").fill("W5A8, W9A1")
    await page.get_by_role("button", name="Start the comparison").click()
    await expect(page.get_by_role("alert")).to_contain_text("unknown scheme 'W9A1'")
    await page.get_by_label("Other schemes").fill("W5A8")
    await page.get_by_label("Labels").fill("Team=x")
    await page.get_by_role("button", name="Start the comparison").click()
    await expect(page.get_by_role("alert")).to_contain_text("Labels: label 'Team'")
    await page.get_by_label("Labels").fill("team=x")
    await page.get_by_role("button", name="Start the comparison").click()
    await expect(page.get_by_text("The first point appears when")).to_be_visible()
    (made,) = ok(await api.client.get("/v1/comparisons"))["data"]
    assert {row["label"] for row in made["jobs"]} == {"W4A6 gptq", "W5A8 gptq"}
    first, second = (row["job_id"] for row in made["jobs"])
    assert ok(await api.client.get(f"/v1/jobs/{first}"))["options"]["seed"] == 5
    succeed(api, first, kl=0.02, size=1_000_000)
    await expect(page.get_by_role("row", name="W4A6 gptq")).to_contain_text("no other one is as small and closer")
    await expect(page.locator(".frontier circle")).to_have_count(1)
    await page.get_by_role("button", name="Cancel what has not ended").click()
    await expect(page.locator("[data-part=state]")).to_contain_text("finished 2 of 2 jobs have ended")
    assert ok(await api.client.get(f"/v1/jobs/{second}"))["status"] == "cancelled"
    await page.get_by_label("Forget the comparison").click()
    await page.get_by_role("button", name="Forget it; its jobs stay").click()
    await expect(page.get_by_role("heading", name="No comparisons yet")).to_be_visible()
    dashboard.faults[:] = [fault for fault in dashboard.faults if "status of 422" not in fault]
