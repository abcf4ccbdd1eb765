"""The dashboard's forms that say how long rows are kept: with their upload, and afterwards."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from core.settings import Settings
from tests.app.conftest import BOOTSTRAP_KEY, Api, ok, started
from tests.app.test_dashboard import ROW, browser, sign_in
from tests.app.test_dataset_expiry import expire, swept

__all__ = ["browser"]
DAY = timedelta(days=1)
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


async def end_of(api: Api) -> datetime | None:
    (dataset,) = ok(await api.client.get("/v1/datasets"))["data"]
    return None if dataset["expires_at"] is None else datetime.fromisoformat(dataset["expires_at"])


async def uploaded(browser: httpx.AsyncClient, token: str, fields: dict[str, Any]) -> httpx.Response:
    return await browser.post("/datasets", files={"file": ("rows.jsonl", ROW)}, data={"csrf": token, **fields})


async def test_an_upload_says_how_long_it_is_kept_and_it_is_changed_afterwards(
    browser: httpx.AsyncClient, api: Api
) -> None:
    token = await sign_in(browser, BOOTSTRAP_KEY)
    made = await uploaded(browser, token, {"name": "r", "keep": "days", "days": "7", "until": ""})
    assert made.status_code == 303
    end = await end_of(api)
    assert end is not None
    assert abs(end - datetime.now(UTC) - 7 * DAY) < timedelta(minutes=1)
    page = f"/datasets/{made.headers['location'].rpartition('=')[2]}"
    last = TODAY + 40 * DAY
    fields = {"csrf": token, "keep": "until", "days": "nonsense that is not chosen", "until": f"{last:%Y-%m-%d}"}
    assert (await browser.post(f"{page}/keep", data=fields)).headers["location"] == page
    assert await end_of(api) == last + DAY  # to the end of that day
    shown = (await browser.get(page)).text
    assert f'value="{last:%Y-%m-%d}"' in shown
    assert re.search(r'value="until" checked', shown)
    await browser.post(f"{page}/keep", data=fields)
    assert await end_of(api) == last + DAY  # saving what is shown changes nothing
    assert (await browser.post(f"{page}/keep", data=fields | {"keep": "forever"})).status_code == 303
    assert await end_of(api) is None
    assert "kept until it is deleted" in (await browser.get(page)).text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "choose how long the rows are kept"),
        ({"keep": "\x00"}, "choose how long the rows are kept"),
        ({"keep": "days", "days": ""}, "write a whole number of days, from 1 to 36500"),
        ({"keep": "days", "days": "0"}, "write a whole number of days"),
        ({"keep": "days", "days": "36501"}, "write a whole number of days"),
        ({"keep": "days", "days": "٣"}, "write a whole number of days"),
        ({"keep": "until", "until": ""}, "write a day, for example 20"),
        ({"keep": "until", "until": "2027-02-30"}, "write a day, for example 20"),
        ({"keep": "until", "until": "2020-01-01"}, "2020-01-01 is over"),
        ({"keep": "until", "until": "9999-12-31"}, "9999-12-31 is over, or more than a hundred years away"),
    ],
)
async def test_what_is_no_end_is_said_at_its_field_and_changes_nothing(
    browser: httpx.AsyncClient, api: Api, fields: dict[str, str], says: str
) -> None:
    token = await sign_in(browser, BOOTSTRAP_KEY)
    dataset = (await uploaded(browser, token, {"keep": "forever"})).headers["location"].rpartition("=")[2]
    refused = await browser.post(f"/datasets/{dataset}/keep", data={"csrf": token, **fields})
    assert refused.status_code == 422
    assert f"<strong>{says}" in refused.text
    assert '<details id="keeping" open>' in refused.text
    assert await end_of(api) is None
    if fields.get("keep"):
        assert says in (await uploaded(browser, token, fields)).text
        assert api.execute("SELECT count(*) FROM datasets") == [(1,)]


async def test_a_file_that_is_no_dataset_is_refused_once_and_in_words(browser: httpx.AsyncClient, api: Api) -> None:
    token = await sign_in(browser, BOOTSTRAP_KEY)
    for content, says in ((b"", "the file has no rows"), (b"x", "row 1: not JSON")):
        files = {"file": ("rows.jsonl", content)}
        refused = await browser.post("/datasets", data={"csrf": token}, files=files)
        assert refused.status_code == 422
        assert refused.text.count(says) == 1
    assert (await browser.get("/datasets")).text.count("No rows yet.") == 1


async def test_an_expired_one_is_kept_on_while_its_rows_are_there(browser: httpx.AsyncClient, api: Api) -> None:
    token = await sign_in(browser, BOOTSTRAP_KEY)
    dataset = (await uploaded(browser, token, {"keep": "forever"})).headers["location"].rpartition("=")[2]
    for status, expected in ((303, "ready"), (422, "expired")):
        expire(api, dataset)
        if status == 422:
            assert swept(api) == 1
        answer = await browser.post(f"/datasets/{dataset}/keep", data={"csrf": token, "keep": "days", "days": "1"})
        assert answer.status_code == status
        assert ok(await api.client.get(f"/v1/datasets/{dataset}"))["status"] == expected
    assert "upload the rows again" in answer.text


async def test_the_operators_lifetime_is_offered_first_and_can_be_left(settings: Settings) -> None:
    async with started(settings.model_copy(update={"dataset_ttl": 3 * 86400})) as api:
        transport = httpx.ASGITransport(api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as browser:
            token = await sign_in(browser, BOOTSTRAP_KEY)
            assert 'value="" checked><label for="keep-">3 days, as usual here' in (await browser.get("/datasets")).text
            await uploaded(browser, token, {"keep": ""})
            end = await end_of(api)
            assert end is not None
            assert abs(end - datetime.now(UTC) - 3 * DAY) < timedelta(minutes=1)
            api.execute("DELETE FROM datasets")
            await uploaded(browser, token, {"keep": "forever"})
            assert await end_of(api) is None
