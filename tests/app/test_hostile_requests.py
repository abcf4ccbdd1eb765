"""Whatever is sent, the answer is a problem that says what was wrong, never a bare 500, and the service goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.access.auth import Scope
from app.main import create_app
from tests.app.conftest import BOOTSTRAP_KEY, Api, client_of, job_body, ok, problem, served
from tests.app.hostile_requests import JSON, RAW, TABLE, Hostile

LEAKS = re.compile(
    r"Traceback|psycopg|sqlalchemy|pydantic_core|pydantic\.dev|site-packages|/work/|/home/|File \"|rival|root:x:",
    re.IGNORECASE,
)
"""Words of the inside, and the name that everything of the other tenant carries."""
MOST_MEMORY = 150_000_000
AT_ONCE = 8


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


async def send(port: int, request: bytes, *, end: bool = False) -> Answer | None:
    """Exactly these bytes, then the end if ``end``, and what comes back until the service closes; None for nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
            if end:
                writer.write_eof()
        received = b""
        with contextlib.suppress(ConnectionError):
            received = await asyncio.wait_for(reader.read(), 15)
    finally:
        writer.close()
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/"):
        return None
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Answer(int(lines[0].split()[1]), headers, body)


def wire(case: Hostile, key: str, names: Mapping[str, str]) -> bytes:
    """The request as bytes; the client's libraries would mend what is broken about it."""

    def filled(text: bytes) -> bytes:
        for name, value in names.items():
            text = text.replace(b"{" + name.encode() + b"}", value.encode())
        return text

    body = filled(case.body)
    headers: dict[str, str | bytes] = {"Host": "x", "Authorization": f"Bearer {key}", "Connection": "close"}
    if body or case.method in ("POST", "PUT"):
        headers["Content-Length"] = str(len(body))
    headers |= case.headers
    lines = [f"{case.method} ".encode() + filled(case.path.encode()) + b" HTTP/1.1"]
    lines += [
        name.encode() + b": " + (value if isinstance(value, bytes) else value.encode())
        for name, value in headers.items()
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def as_tenant(api: Api, tenant: str, directory: Path) -> tuple[str, dict[str, str]]:
    """A key of the tenant, and the names of what it has: a finished job with a file, a dataset, the key itself."""
    wanted = {"name": f"{tenant} key", "scopes": list(Scope), "tenant": tenant}
    made = ok(await api.client.post("/v1/keys", json=wanted), 201)
    async with api.as_key(made["key"]) as client:
        files = {"file": (f"{tenant}.jsonl", b'{"messages": [{"role": "user", "content": "%s"}]}' % tenant.encode())}
        dataset = ok(await client.post("/v1/datasets", files=files), 201)["id"]
        body = job_body(name=f"{tenant} job", labels={"owner": tenant})
        jobs = [ok(await client.post("/v1/jobs", json=body), 201)["id"] for _ in range(2)]
        cursor = ok(await client.get("/v1/jobs", params={"limit": 1}))["next_cursor"]
    job_id = jobs[0]
    api.start(job_id)
    for name in ("config.json", "quality_report.json", "quality_report.html"):
        api.publish(job_id, name, f'{{"owner": "{tenant}"}}'.encode(), directory, "application/json")
    api.end(job_id, "succeeded")
    return made["key"], {"job": job_id, "dataset": dataset, "key": made["id"], "cursor": cursor}


async def test_every_hostile_request_gets_the_one_right_answer(api: Api, tmp_path: Path) -> None:
    _, theirs = await as_tenant(api, "rival", tmp_path)
    key, mine = await as_tenant(api, "acme", tmp_path)
    names = {**theirs, "mine": mine["job"]}
    process, wrong = psutil.Process(), []
    before = most = process.memory_info().rss
    assert len(TABLE) >= 300
    async with served(api) as client:
        port = client.base_url.port or 0
        for some in (TABLE[start : start + AT_ONCE] for start in range(0, len(TABLE), AT_ONCE)):
            answers = await asyncio.gather(*(send(port, wire(case, key, names)) for case in some))
            most = max(most, process.memory_info().rss)
            judgements = ((case.what, judged(case, answer)) for case, answer in zip(some, answers, strict=True))
            wrong += [f"{what}: {fault}" for what, fault in judgements if fault]
        ok(await client.get("/healthz"))
    assert not wrong, "\n".join(wrong)
    assert most - before < MOST_MEMORY
    assert not list((api.settings.resolved_home / "uploads").iterdir())


def judged(case: Hostile, answer: Answer | None) -> str | None:
    """What is wrong with the answer."""
    if answer is None:
        return "no answer"
    if answer.status != case.status:
        return f"{answer.status} instead of {case.status}: {answer.body[:300]!r}"
    text = answer.body.decode("utf-8", "replace") + str(answer.headers)
    leak = LEAKS.search(text)
    if leak is not None:
        return f"it tells {leak[0]!r}: {text[:300]}"
    if "set-cookie" in answer.headers or "x-request-id" not in answer.headers:
        return f"headers {answer.headers}"
    if answer.status >= 400:
        if answer.headers.get("content-type") != "application/problem+json":
            return f"content type {answer.headers.get('content-type')}"
        problem_details = json.loads(answer.body)
        if not problem_details["detail"] or len(answer.body) > 20_000:
            return f"{len(answer.body)} bytes of {problem_details['detail'][:100]!r}"
    return None


@pytest.mark.parametrize("what", RAW)
async def test_what_is_hardly_http_ends_its_connection_and_nothing_else(served_port: int, what: str) -> None:
    answer = await send(served_port, RAW[what], end=True)
    assert answer is None or answer.status < 500
    assert answer is None or LEAKS.search(answer.body.decode("latin-1")) is None
    healthy = await send(served_port, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert healthy is not None
    assert healthy.status == 200


async def test_slow_uploads_hold_up_nobody_and_leave_nothing(api: Api) -> None:
    head = (
        f"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {BOOTSTRAP_KEY}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n{'
    ).encode()
    uploads = api.settings.resolved_home / "uploads"
    async with served(api) as client:
        writers = []
        for _ in range(60):  # twice as many as there are database connections
            _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(head)
            await writer.drain()
            writers.append(writer)
        await until(lambda: uploads.is_dir() and len(list(uploads.iterdir())) == 60)
        ok(await asyncio.wait_for(client.get("/v1/jobs"), 5))
        for writer in writers:
            writer.write(b'"')
            writer.transport.abort()
        await until(lambda: not list(uploads.iterdir()))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_json_body_of_unsaid_length_is_cut_at_the_limit(api: Api) -> None:
    async def long_body() -> Any:
        for _ in range(10):
            yield b" " * 100_000
        yield json.dumps(job_body()).encode()

    problem(await api.client.post("/v1/jobs", content=long_body(), headers=JSON), 413, "body-too-large")


async def test_405_says_what_is_possible(api: Api) -> None:
    response = await api.client.put("/v1/jobs")
    assert set(response.headers["allow"].replace(" ", "").split(",")) & {"GET", "POST"}


async def test_an_unforeseen_fault_is_a_problem_that_tells_nothing_inside(api: Api) -> None:
    @api.app.get("/v1/boom")
    async def boom() -> None:
        raise RuntimeError("the password is hunter2")

    response = await api.client.get("/v1/boom", headers={"X-Request-Id": "abc-1"})
    body = problem(response, 500, "internal")
    assert body["request_id"] == "abc-1"
    assert "hunter2" not in response.text


@pytest.mark.parametrize("given_id", ["a b", "x" * 65, "<script>", "é"])
async def test_a_request_id_that_could_hurt_a_log_is_replaced(api: Api, given_id: str) -> None:
    response = await api.client.get("/healthz", headers=[("X-Request-Id", given_id.encode())])  # type: ignore[arg-type]
    assert response.headers["x-request-id"] != given_id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["model", "calibration", "scheme", "method", "options", "name", "labels", "timeout_s", "x"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(fields, json_values, min_size=1, max_size=3))
def test_no_json_is_a_fault_of_ours(api_for_properties: Any, changes: dict[str, Any]) -> None:
    response = api_for_properties(json.dumps(job_body(**changes)))
    assert response.status_code in (201, 400, 422), response.text
    if response.status_code != 201:
        assert response.headers["content-type"] == "application/problem+json"


@pytest.fixture
def api_for_properties(request: pytest.FixtureRequest) -> Any:
    """Posts a job body from a synchronous test, each time in an event loop of its own."""
    configured = request.getfixturevalue("settings")

    def post(body: str) -> httpx.Response:
        async def once() -> httpx.Response:
            app = create_app(configured)
            async with app.router.lifespan_context(app), client_of(app, BOOTSTRAP_KEY) as client:
                return await client.post("/v1/jobs", content=body, headers=JSON)

        return asyncio.run(once())

    return post


@pytest.fixture
async def served_port(api: Api) -> AsyncIterator[int]:
    async with served(api) as client:
        yield client.base_url.port or 0


def test_the_page_says_how_long_the_table_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert f"is a table of {len(TABLE)} hostile requests" in page
