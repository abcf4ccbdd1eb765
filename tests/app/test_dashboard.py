"""What a browser is never let do: forge a form, look at another tenant's things, run or load anything foreign."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.access.auth import EXPLAINED, Scope
from app.ui import session
from app.ui.advice import ADVICE
from core.contract.errors import FailureCode
from core.settings import Settings
from tests.app.conftest import BOOTSTRAP_KEY, Api, ok, started
from tests.app.tenant_cases import COMPARISON, DASHBOARD, Owned

CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')
FORMS = [route.removeprefix("POST ") for route in DASHBOARD if route.startswith("POST ") and route != "POST /login"]
EVERYTHING = """SELECT (SELECT count(*) FROM jobs), (SELECT string_agg(status, '') FROM jobs),
    (SELECT count(*) FROM datasets), (SELECT count(*) FROM api_keys), (SELECT count(revoked_at) FROM api_keys),
    (SELECT count(*) FROM comparisons), (SELECT string_agg(expires_at::text, '') FROM datasets),
    (SELECT string_agg(to_jsonb(w)::text, '' ORDER BY id) FROM webhooks w),
    (SELECT string_agg(to_jsonb(d)::text, '' ORDER BY id) FROM webhook_deliveries d),
    (SELECT count(*) FROM buckets), (SELECT string_agg(to_jsonb(p)::text, '') FROM pushes p)"""
ROW = '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n'


async def sign_in(client: httpx.AsyncClient, key: str) -> str:
    """The session's token for forms."""
    response = await client.post("/login", data={"key": key})
    assert response.status_code == 303, response.text
    token = CSRF.search((await client.get("/")).text)
    assert token is not None
    return token[1]


async def a_webhook(api: Api) -> dict[str, str]:
    """One with a delivery that has failed."""
    webhook = ok(await api.client.post("/v1/webhooks", json={"url": "https://hooks.example.com/x"}), 201)["id"]
    delivery = ok(await api.client.post(f"/v1/webhooks/{webhook}/ping"), 202)["id"]
    api.execute("UPDATE webhook_deliveries SET status = 'failed', due_at = NULL, finished_at = now()")
    return {"webhook_id": webhook, "delivery_id": delivery}


@pytest.fixture
async def browser(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """A client with cookies and without a key."""
    transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        yield client


async def test_the_cookie_is_out_of_reach_and_carries_no_key(browser: httpx.AsyncClient, api: Api) -> None:
    response = await browser.post("/login", data={"key": BOOTSTRAP_KEY, "next": "/workers"})
    assert response.headers["location"] == "/workers"
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    assert BOOTSTRAP_KEY not in cookie
    assert BOOTSTRAP_KEY not in (await browser.get("/")).text
    assert (await browser.get("/v1/jobs")).status_code == 401  # a session is no key
    transport = httpx.ASGITransport(api.app)
    async with httpx.AsyncClient(transport=transport, base_url="https://api") as encrypted:
        assert "Secure" in (await encrypted.post("/login", data={"key": BOOTSTRAP_KEY})).headers["set-cookie"]


@pytest.mark.parametrize("change", ["expiry", "digest", "signature", "nothing"])
async def test_a_forged_cookie_is_no_session(browser: httpx.AsyncClient, change: str) -> None:
    await sign_in(browser, BOOTSTRAP_KEY)
    expiry, digest, nonce, signature = browser.cookies[session.COOKIE].split(".")
    forged = {
        "expiry": [str(int(expiry) + 1), digest, nonce, signature],
        "digest": [expiry, "0" * 64, nonce, signature],
        "signature": [expiry, digest, nonce, "0" * 64],
        "nothing": [expiry, digest, nonce, signature],
    }[change]
    browser.cookies.clear()
    response = await browser.get("/", headers={"Cookie": f"{session.COOKIE}={'.'.join(forged)}"})
    assert response.status_code == (200 if change == "nothing" else 303)


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
async def test_nobody_is_sent_elsewhere_after_signing_in(browser: httpx.AsyncClient, target: str) -> None:
    response = await browser.post("/login", data={"key": BOOTSTRAP_KEY, "next": target})
    assert response.headers["location"] == "/"


@pytest.mark.parametrize("forgery", ["no token", "another session's token", "another site"])
async def test_a_form_that_is_not_of_this_session_changes_nothing(
    browser: httpx.AsyncClient, api: Api, forgery: str
) -> None:
    rows = {"file": ("rows.jsonl", ROW)}
    names = {
        "status": "disabled",
        "bucket": "models-of-us",
        "push_id": "push_" + "0" * 32,
        "job_id": (await api.create_job())["id"],
        "dataset_id": ok(await api.client.post("/v1/datasets", files=rows), 201)["id"],
        "key_id": ok(await api.client.post("/v1/keys", json={"name": "n", "scopes": ["jobs:read"]}), 201)["id"],
        "comparison_id": ok(await api.client.post("/v1/comparisons", json=COMPARISON), 201)["id"],
        **await a_webhook(api),
    }
    others = await sign_in(browser, BOOTSTRAP_KEY)
    browser.cookies.clear()
    own = await sign_in(browser, BOOTSTRAP_KEY)
    assert own != others
    token = {"no token": "", "another session's token": others, "another site": own}[forgery]
    headers = {"Sec-Fetch-Site": "cross-site"} if forgery == "another site" else {}
    before = api.execute(EVERYTHING)
    for path in (form.format(**names) for form in FORMS):
        if path == "/datasets":
            response = await browser.post(path, data={"csrf": token}, files=rows, headers=headers)
        else:
            fields = {"csrf": token, "name": "x", "scopes": "jobs:read", "keep": "days", "days": "9"}
            response = await browser.post(path, data=fields, headers=headers)
        assert response.status_code == 403, path
        assert "forged-form" in response.text
    assert api.execute(EVERYTHING) == before
    assert (await browser.get("/")).status_code == 200  # nor is anyone signed out


async def test_another_tenants_things_are_not_there(browser: httpx.AsyncClient, api: Api, tmp_path: Path) -> None:
    job = (await api.create_job(name="secret plan"))["id"]
    api.start(job)
    api.publish(job, "config.json", b"{}", tmp_path)
    api.publish(job, "quality_report.html", b"<p>", tmp_path)
    api.end(job, "succeeded")
    dataset = ok(await api.client.post("/v1/datasets", files={"file": ("rows.jsonl", ROW)}), 201)["id"]
    key = ok(await api.client.post("/v1/keys", json={"name": "mine", "scopes": ["jobs:read"]}), 201)["id"]
    other = ok(await api.client.post("/v1/keys", json={"name": "o", "scopes": list(Scope), "tenant": "other"}), 201)
    token = await sign_in(browser, other["key"])
    ids = {"job_id": job, "dataset_id": dataset, "key_id": key}
    comparison = ok(await api.client.post("/v1/comparisons", json=COMPARISON | {"name": "secret plan"}), 201)["id"]
    ids["comparison_id"] = comparison
    ids |= await a_webhook(api)
    mine = Owned(**{**dict.fromkeys((one.name for one in fields(Owned)), "-"), **ids})
    for route in (route for route, kind in DASHBOARD.items() if kind == "object"):
        method, path = (
            route.partition(" ")[0],
            mine.path(route, {"name": "config.json", "status": "disabled", "number": 1, "index": 0}),
        )
        response = await browser.request(method, path, data={"csrf": token} if method == "POST" else None)
        assert response.status_code == 404, route
    assert (await browser.get(f"/jobs/new?from={job}")).status_code == 404
    assert (await browser.get(f"/comparisons/new?from={job}")).status_code == 404
    lists = [route.partition(" ")[2] for route, kind in DASHBOARD.items() if kind == "list"]
    for path in ("/jobs/new", "/comparisons/new", *lists):
        page = (await browser.get(path)).raise_for_status().text
        assert not [word for word in (*ids.values(), key[-8:], "secret plan") if word in page], path
    browser.cookies.clear()
    await sign_in(browser, BOOTSTRAP_KEY)
    assert (await browser.get(f"/jobs/{job}")).status_code == 200
    assert (await browser.get(f"/jobs/{job}/files/config.json")).content == b"{}"


async def test_the_menu_has_what_the_key_may_see_also_where_it_may_not(browser: httpx.AsyncClient, api: Api) -> None:
    wanted = {"name": "few", "scopes": ["workers:read", "webhooks:read"]}
    key = ok(await api.client.post("/v1/keys", json=wanted), 201)["key"]
    await browser.post("/login", data={"key": key})
    assert (await browser.get("/")).headers["location"] == "/workers"
    refused = await browser.get("/keys")
    assert refused.status_code == 403
    assert re.findall(r'<li><a href="([^"]+)"', refused.text) == ["/workers", "/webhooks", "/docs"]
    blind = ok(await api.client.post("/v1/keys", json={"name": "b", "scopes": ["webhooks:write"]}), 201)["key"]
    browser.cookies.clear()
    await browser.post("/login", data={"key": blind})
    assert "cannot read anything" in (await browser.get("/")).text


async def test_every_page_has_the_policy_and_nothing_inline(browser: httpx.AsyncClient, api: Api) -> None:
    job = (await api.create_job(name="<script>alert(1)</script>"))["id"]
    await sign_in(browser, BOOTSTRAP_KEY)
    hook = await a_webhook(api)
    named = COMPARISON | {"name": "<script>alert(1)</script>"}
    comparison = ok(await api.client.post("/v1/comparisons", json=named), 201)["id"]
    for path in (
        *("/comparisons", "/comparisons/new", f"/comparisons/{comparison}", f"/jobs/{job}/fork"),
        *(
            "/",
            "/jobs/new",
            f"/jobs/{job}",
            "/datasets",
            "/keys",
            "/workers",
            "/jobs/nothing",
            "/login",
            "/webhooks",
            "/usage",
            "/audit",
        ),
        *(f"/webhooks/{hook['webhook_id']}", f"/webhooks/{hook['webhook_id']}/deliveries/{hook['delivery_id']}"),
    ):
        response = await browser.get(path)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "<script>" not in response.text
        assert not re.search(r'\sstyle="|\son[a-z]+="', response.text)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', response.text)


@pytest.mark.parametrize(
    ("part", "called"),
    [("merger", "vision merger"), ("projector", "vision projector"), (None, "vision, behind its blocks")],
)
async def test_blocks_of_several_stacks_are_called_by_their_stack(
    browser: httpx.AsyncClient, api: Api, part: str | None, called: str
) -> None:
    """A worker of an earlier version does not say what lies behind the blocks."""
    job = (await api.create_job())["id"]
    api.start(job)
    places: list[dict[str, Any]] = [
        {"stack": "vision", "index": 0},
        {"stack": "vision", "index": None} | ({"part": part} if part else {}),
        {"stack": "language model", "index": 0},
    ]
    for block, place in enumerate(places):
        report = {"groups": [{"error": {"base": 0.2, "shared": 0.1, "routed": 0.05}}], **place}
        api.execute(
            "INSERT INTO layers (job_id, block, attempt, seconds, report, files) VALUES (%s, %s, 1, 2.0, %s, '[]')",
            [job, block, json.dumps(report)],
        )
        happened = {"block": block, "blocks": 3, "seconds": 2.0, "error": {"routed": 0.05}, **place}
        api.append_event(job, "job.block", happened)
        if block == 1:
            api.execute("UPDATE jobs SET blocks_done = 2, blocks_total = 3 WHERE id = %s", [job])
            await sign_in(browser, BOOTSTRAP_KEY)
            assert f"2 of 3 blocks, the last one {called}<" in (await browser.get(f"/jobs/{job}")).text
    page = (await browser.get(f"/jobs/{job}")).text
    assert "block (vision 0–1, language model 2)" in page
    for number, name in enumerate(("vision block 0", called, "language model block 0")):
        assert f"<title>{name}, + routed experts: 5.00 %</title>" in page
        assert f"Block {number}, {name}, done in 2.0 seconds, error 5.00 %" in page
    assert "decoder block" not in page
    api.execute("UPDATE jobs SET blocks_done = 3, phase = 'evaluating' WHERE id = %s", [job])
    assert "All 3 blocks are fitted</p>" in (await browser.get(f"/jobs/{job}")).text


async def test_a_job_that_waits_says_what_the_workers_do(browser: httpx.AsyncClient, api: Api) -> None:
    job = (await api.create_job())["id"]
    await sign_in(browser, BOOTSTRAP_KEY)

    async def said() -> str:
        return (await browser.get(f"/jobs/{job}")).text

    assert '<a href="/workers">no worker is alive: it waits until one starts</a>' in await said()
    for name, busy, says in (("a", True, "the only worker is busy"), ("b", True, "all 2 workers are busy"),
                             ("c", False, "1 of 3 workers idle")):  # fmt: skip
        api.execute(
            "INSERT INTO workers (id, host, device, job_id) VALUES (%s, 'h', 'cpu', %s)", [name, job if busy else None]
        )
        assert says in await said()
    few = ok(await api.client.post("/v1/keys", json={"name": "few", "scopes": ["jobs:read"]}), 201)["key"]
    browser.cookies.clear()
    await browser.post("/login", data={"key": few})
    assert "queued" in await said()
    assert "workers idle" not in await said()


def test_every_failure_has_a_sentence_about_what_to_do() -> None:
    assert set(ADVICE) == set(FailureCode)
    assert all(sentence.endswith(".") and "  " not in sentence for sentence in ADVICE.values())


async def test_a_method_without_experts_has_one_curve(browser: httpx.AsyncClient, api: Api) -> None:
    job = (await api.create_job())["id"]
    report = {"groups": [{"error": {"base": 0.05, "shared": 0.05, "routed": 0.05}}]}
    api.execute(
        "INSERT INTO layers (job_id, block, attempt, seconds, report, files) VALUES (%s, 0, 1, 2.0, %s, '[]')",
        [job, json.dumps(report)],
    )
    api.execute("UPDATE jobs SET blocks_done = 1, blocks_total = 1 WHERE id = %s", [job])
    await sign_in(browser, BOOTSTRAP_KEY)
    page = (await browser.get(f"/jobs/{job}")).text
    assert "block 0, quantized: 5.00 %" in page
    assert "routed experts" not in page


async def test_many_warnings_of_one_kind_are_one_event_of_the_page(browser: httpx.AsyncClient, api: Api) -> None:
    job = (await api.create_job())["id"]
    for number in range(9):
        api.append_event(job, "job.warning", {"message": f"layers.{number}.mlp.down: clipped {number} weights"})
    api.append_event(job, "job.warning", {"message": "the rows are few"})
    await sign_in(browser, BOOTSTRAP_KEY)
    page = (await browser.get(f"/jobs/{job}")).text
    assert page.count("mlp.down: clipped") == 1
    assert "Warning: layers.8.mlp.down: clipped 8 weights (and 8 more like it)" in page
    assert "Warning: the rows are few<" in page


async def test_every_scope_says_what_a_key_with_it_may_do(browser: httpx.AsyncClient) -> None:
    await sign_in(browser, BOOTSTRAP_KEY)
    page = (await browser.get("/keys")).text
    assert set(EXPLAINED) == set(Scope)
    assert all(f'{scope.value}<span class="under">{says}</span>' in page for scope, says in EXPLAINED.items())


async def test_static_files_are_named_and_nothing_else_is_served(browser: httpx.AsyncClient) -> None:
    page = (await browser.get("/login")).text
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        response = await browser.get(address)
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
    for name in ("..%2frouter.py", "%2e%2e/pages.py", "nothing.css", "dashboard.css%00"):
        assert (await browser.get(f"/static/{name}")).status_code == 404


HOSTILE: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("GET", "/?status=flying", {}),
    ("GET", "/?cursor=x", {}),
    ("GET", "/?no=such", {}),
    ("GET", "/?label=%00", {}),
    ("GET", "/jobs/new?from=job_1", {}),
    ("GET", "/jobs/%00", {}),
    ("POST", "/login", {"key": "\ud800"}),
    ("POST", "/login", {"key": "k" * 80_000}),
    ("POST", "/login", {"key": "", "next": "\r\nSet-Cookie: a=b"}),
    ("POST", "/jobs/new", {"model.id": "a/b", "calibration.hub": "a/b", "options.seed": "9" * 30}),
    ("POST", "/jobs/new", {"model.id": "a/b", "calibration.hub": "a/b", "labels": "\x00=1"}),
    ("POST", "/jobs/new", {"once": "\x00"}),
    ("POST", "/keys", {"scopes": "everything", "name": "n"}),
    ("POST", "/keys", {"scopes": "jobs:read", "name": "\x00"}),
    ("POST", "/keys", {"scopes": "jobs:read", "name": "n", "days": "1e9"}),
    ("POST", "/jobs/new", {"model.id": "a/b", "calibration.hub": "a/b", "accept_if.max_kl": "9" * 20 + "e99"}),
    ("POST", "/comparisons/new", {"model.id": "a/b", "calibration.hub": "a/b", "schemes": "W4A6"}),
    ("POST", "/comparisons/new", {"model.id": "a/b", "calibration.hub": "a/b", "other_schemes": "," * 999 + "\x00,W"}),
    ("POST", "/comparisons/new", {"other_schemes": "W4A6,W4A8", "methods": "\x00", "once": "\x00"}),
    ("POST", "/comparisons/job_1/delete", {"a": ""}),
    ("GET", "/comparisons/new?from=%00", {}),
    ("GET", "/comparisons/%00", {}),
    ("GET", "/audit?object_id=%00", {}),
    ("GET", "/audit?action=Key%20created&key_id='", {}),
    ("GET", "/audit?cursor=x", {}),
    ("GET", "/datasets/%00", {}),
    ("GET", "/datasets/ds_1?after=-1", {}),
    ("GET", "/datasets/ds_1/rows/0/images/x", {}),
    ("POST", "/datasets/ds_1/keep", {"keep": "forever"}),
    ("POST", "/datasets/%00/keep", {"keep": "until", "until": "9" * 5000}),
    ("POST", "/webhooks", {"url": "https://10.0.0.1/", "event_types": "job.failed"}),
    ("POST", "/webhooks", {"url": "javascript:alert(1)", "event_types": "job.failed"}),
    ("POST", "/webhooks", {"url": "https://hooks.example.com/", "event_types": "everything"}),
    ("POST", "/webhooks", {"url": "https://hooks.example.com/", "event_types": "job.failed", "description": "\x00"}),
    ("POST", "/webhooks/wh_1/status/flying", {"url": ""}),
    ("POST", "/webhooks/%00/rotate", {"keep": "1e9"}),
    ("GET", "/webhooks/%00?status=flying", {}),
    ("GET", "/webhooks/wh_1/deliveries/%00", {}),
)


async def test_hostile_input_is_refused_and_breaks_nothing(browser: httpx.AsyncClient) -> None:
    token = await sign_in(browser, BOOTSTRAP_KEY)
    for method, path, body in HOSTILE:
        content = "&".join(f"{k}={_quoted(v)}" for k, v in {"csrf": token, **body}.items()) if body else None
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        response = await browser.request(method, path, content=content, headers=headers)
        allowed = (200,) if "days" in body else (400, 401, 404, 422)
        assert response.status_code in allowed, (path, body, response.text)
        assert response.headers["content-type"].startswith("text/html")
        assert "set-cookie" not in response.headers


def _quoted(value: str) -> str:
    return "".join(f"%{byte:02X}" for byte in value.encode("utf-8", "surrogatepass"))


async def test_pages_count_as_requests_of_their_key(settings: Settings) -> None:
    async with started(settings.model_copy(update={"requests_per_minute": 3})) as api:
        transport = httpx.ASGITransport(api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as browser:
            await sign_in(browser, BOOTSTRAP_KEY)
            for _ in range(2):
                assert (await browser.get("/")).status_code == 200
            refused = await browser.get("/")
            assert refused.status_code == 429
            assert "at most 3 requests a minute" in refused.text


async def test_how_a_job_waits_is_asked_by_its_form_and_shown_in_the_next(browser: httpx.AsyncClient, api: Api) -> None:
    queue = {"priority": "-5", "device": "H100", "max_wait_s": "600"}
    csrf = await sign_in(browser, BOOTSTRAP_KEY)
    inputs = {"once": "x", "model.id": "acme/m", "calibration.hub": "acme/rows", "scheme": "W4A6", "method": "qe"}
    made = await browser.post("/jobs/new", data={"csrf": csrf, **inputs, **queue})
    path = made.headers["location"]
    assert api.execute("SELECT priority, device, max_wait_s FROM jobs") == [(-5, "H100", 600)]
    for page in (f"/jobs/new?from={path.rpartition('/')[2]}", f"{path}/fork"):
        text = (await browser.get(page)).text
        assert all(re.search(f'name="{name}"[^>]* value="{value}"', text) for name, value in queue.items())
    refused = await browser.post("/jobs/new", data={"csrf": csrf, **inputs, **queue, "max_wait_s": "1"})
    assert (refused.status_code, 'href="#max_wait_s"' in refused.text) == (422, True)


async def test_a_job_is_pushed_from_its_page_with_the_key_of_a_bucket(browser: httpx.AsyncClient, api: Api) -> None:
    csrf = await sign_in(browser, BOOTSTRAP_KEY)
    key = {"csrf": csrf, "bucket": "models-of-us", "access_key_id": "AKIA1", "secret_access_key": "hushhush"}
    refused = await browser.post("/keys/buckets", data={**key, "endpoint_url": "https://10.0.0.1"})
    assert (refused.status_code, "not a public address" in refused.text, "hushhush" in refused.text) == (
        422,
        True,
        False,
    )
    assert (await browser.post("/keys/buckets", data={**key, "path_style": "yes"})).status_code == 303
    page = (await browser.get("/keys")).text
    assert ("models-of-us" in page, "hushhush" in page) == (True, False)
    job = (await api.create_job())["id"]
    refused = await browser.post(f"/jobs/{job}/pushes", data={"csrf": csrf, "to": "hub:a/b"})
    assert (refused.status_code, "has no hub token" in refused.text, 'value="hub:a/b"' in refused.text) == (
        422,
        True,
        True,
    )
    pushed = await browser.post(
        f"/jobs/{job}/pushes", data={"csrf": csrf, "to": "s3://models-of-us/a", "public": "yes"}
    )
    assert pushed.headers["location"] == f"/jobs/{job}#pushes"
    ((push, private),) = api.execute("SELECT id, private FROM pushes")
    assert not private
    assert "for the end of the job" in (await browser.get(f"/jobs/{job}")).text
    await browser.post(f"/jobs/{job}/pushes/{push}/cancel", data={"csrf": csrf})
    api.append_event(job, "job.pushed", {"to": "s3://models-of-us/a"})
    api.append_event(job, "job.push_failed", {"to": "hub:a/b", "error": "the hub answered 403"})
    page = (await browser.get(f"/jobs/{job}")).text
    assert ("Pushed to s3://models-of-us/a" in page, "to hub:a/b: the hub answered 403" in page) == (True, True)
    await browser.post("/keys/buckets/models-of-us/delete", data={"csrf": csrf})
    assert api.execute("SELECT (SELECT count(*) FROM buckets), (SELECT status FROM pushes)") == [(0, "cancelled")]


async def test_the_hub_token_is_set_and_deleted_on_the_page_of_keys(browser: httpx.AsyncClient, api: Api) -> None:
    csrf = await sign_in(browser, BOOTSTRAP_KEY)
    refused = await browser.post("/keys/hub-token", data={"csrf": csrf, "token": "too hort"})
    assert (refused.status_code, "too hort" in refused.text) == (422, False)
    await browser.post("/keys/hub-token", data={"csrf": csrf, "token": "hf_ofthetenant"})
    page = (await browser.get("/keys")).text
    assert ("with your own token" in page, "hf_ofthetenant" in page) == (True, False)
    await browser.post("/keys/hub-token/delete", data={"csrf": csrf})
    assert api.execute("SELECT count(*) FROM hub_tokens") == [(0,)]
