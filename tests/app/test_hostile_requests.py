"""Whatever is sent, the answer is a problem that says what was wrong, never a bare 500, and the service goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.main import create_app
from tests.app.conftest import BOOTSTRAP_KEY, Api, client_of, job_body, ok, problem, served

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"null", 422),
        (b"[]", 422),
        (b"{", 400),
        (b"\xff\xfe\x00", 400),
        (b'{"model": ' * 20_000, 400),
        (b"[" * 100_000, 400),
        (b'{"timeout_s": ' + b"9" * 5_000 + b"}", 400),
        (b'{"timeout_s": 1e999}', 422),
        (b'{"timeout_s": NaN}', 422),
        (json.dumps(job_body(name="\x00")).encode(), 422),
        (json.dumps(job_body(name="\ud800")).encode(), 422),
        (json.dumps(job_body(labels={"\ud800": "x"})).encode(), 422),
        (json.dumps(job_body(labels={"a": "\udfff"})).encode(), 422),
        (json.dumps(job_body(scheme="W4A6\n")).encode(), 422),
        (json.dumps(job_body(scheme="\ud800")).encode(), 422),
        (json.dumps(job_body(options={"seed": 2**63})).encode(), 422),
        (b" " * 300_000, 413),
    ],
)
async def test_a_bad_body_is_a_problem(api: Api, body: bytes, status: int) -> None:
    response = await api.client.post("/v1/jobs", content=body, headers=JSON)
    slugs = {400: "malformed-request", 413: "body-too-large", 422: "invalid-request"}
    problem(response, status, slugs[status])
    assert api.execute("SELECT count(*) FROM jobs") == [(0,)]


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/v1/jobs/", 404, "not-found"),
        ("GET", "/v2/%00%ff", 404, "not-found"),
        ("PUT", "/v1/jobs", 405, "method-not-allowed"),
        ("BREW", "/v1/jobs", 405, "method-not-allowed"),
        ("GET", "/v1/jobs?limit=99999999999999999999999", 422, "invalid-request"),
        ("GET", "/v1/jobs?cursor=%00%ff", 400, "invalid-cursor"),
        ("GET", "/v1/jobs?label=%ff%fe", None, ""),
        ("GET", "/v1/jobs?label=%ed%a0%80", None, ""),
        ("GET", "/v1/jobs?created_after=999999-01-01T00:00:00Z", 422, "invalid-request"),
        ("GET", "/v1/jobs/job_" + "0" * 32 + "/events?after=9223372036854775808", 422, "invalid-request"),
        ("GET", "/v1/jobs/job_" + "0" * 32 + "/layers?after=-5", 422, "invalid-request"),
        ("GET", "/v1/jobs/job_" + "0" * 32 + "/report?format=pdf", 422, "invalid-request"),
    ],
)
async def test_a_bad_address_is_a_problem(api: Api, method: str, path: str, status: int | None, slug: str) -> None:
    response = await api.client.request(method, path)
    if status is None:
        assert response.status_code < 500
    else:
        problem(response, status, slug)


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


async def test_bytes_that_are_no_http_do_not_stop_the_service(api: Api) -> None:
    async with served(api) as client:
        port = client.base_url.port
        for garbage in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n"
                        b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n"):  # fmt: skip
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                writer.write_eof()
                answer = await asyncio.wait_for(reader.read(), 5)
                assert b" 500 " not in answer.split(b"\r\n")[0]
            writer.close()
        ok(await client.get("/healthz"))


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
