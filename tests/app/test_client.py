"""The client against the real API behind a real server, over connections that break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fastapi import Request, Response

from quant_experts.client import (
    ApiError,
    AsyncClient,
    Client,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from quant_experts.client.retries import RetryPolicy
from tests.app.conftest import BOOTSTRAP_KEY, MODEL, Api, served
from tests.app.cutting import Cuts, cutting

T = TypeVar("T")
QUICK = RetryPolicy(first=0.01, longest=0.05)
JOB = {"model": MODEL, "calibration": "acme/rows", "scheme": "W4A6"}


@pytest.fixture
async def network(api: Api) -> AsyncIterator[Cuts]:
    """The served API behind a relay that can break connections."""
    async with served(api) as direct, cutting(direct.base_url.port or 0) as cuts:
        yield cuts


@pytest.fixture
async def client(network: Cuts) -> AsyncIterator[Client]:
    with Client(network.url, BOOTSTRAP_KEY, retry=QUICK) as client:
        yield client


async def run(work: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """The blocking client in a thread, because the service runs in this one."""
    return await asyncio.to_thread(work, *arguments, **named)


async def test_a_job_is_made_read_listed_and_cancelled(client: Client) -> None:
    job = await run(client.jobs.create, **JOB, labels={"team": "vision"}, options={"seed": 7}, name="nightly")
    assert (job.status, job.labels, job.options["seed"], job.finished) == ("queued", {"team": "vision"}, 7, False)
    assert (await run(job.refresh)).model.id == MODEL
    assert (await run(job.cancel)).status == "cancelled"
    assert (await run(job.cancel)).status == "cancelled"
    assert (await run(job.retry)).status == "queued"
    with pytest.raises(Conflict, match="only failed or cancelled"):
        await run(job.retry)
    listed = await run(lambda: list(client.jobs.list(status=["queued"], label={"team": None})))
    assert [entry.id for entry in listed] == [job.id]
    assert await run(lambda: list(client.jobs.list(created_after=datetime.now(UTC) + timedelta(days=1)))) == []


async def test_a_listing_goes_through_all_pages(client: Client) -> None:
    made = [(await run(client.jobs.create, **JOB)).id for _ in range(5)]
    assert await run(lambda: [job.id for job in client.jobs.list(page_size=2)]) == made[::-1]


async def test_a_create_whose_answer_is_lost_makes_one_job(client: Client, network: Cuts, api: Api) -> None:
    network.after = [20]
    job = await run(client.jobs.create, **JOB)
    assert network.made == 1
    assert api.execute("SELECT id FROM jobs") == [(job.id,)]


async def test_a_key_is_not_made_twice_when_its_answer_is_lost(client: Client, network: Cuts, api: Api) -> None:
    network.after = [20]
    with pytest.raises(ConnectionFailed):
        await run(client.keys.create, name="ci", scopes=["jobs:read"])
    assert len(api.execute("SELECT id FROM api_keys")) == 1


async def test_keys_are_made_listed_and_revoked(client: Client, network: Cuts) -> None:
    made = await run(client.keys.create, name="ci", scopes=["jobs:read"])
    assert made.key.startswith("qe_")
    with Client(network.url, made.key, retry=QUICK) as narrow:
        with pytest.raises(Forbidden) as refused:
            await run(narrow.jobs.create, **JOB)
        assert refused.value.type == "missing-scope"
        assert (await run(client.keys.revoke, made.id)).revoked_at is not None
        with pytest.raises(Unauthenticated):
            await run(lambda: list(narrow.jobs.list()))
    assert [key.id for key in await run(lambda: list(client.keys.list()))] == [made.id]


async def test_a_refusal_says_where_and_under_which_request(client: Client) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await run(client.jobs.create, model=MODEL, calibration="acme/rows", scheme="W9A9")
    error = refused.value
    assert (error.status, error.type, error.pointer, error.retryable) == (422, "invalid-request", "/scheme", False)
    assert error.request_id
    assert error.request_id in str(error)
    with pytest.raises(NotFound):
        await run(client.jobs.get, "job_" + "0" * 32)
    with pytest.raises(NotFound):
        await run(client.jobs.get, "../keys")


async def test_an_answer_of_something_else_is_an_error_too(api: Api, client: Client) -> None:
    @api.app.get("/v1/jobs/{job_id}/attempts-page")
    async def page() -> Response:
        return Response("<html>gateway</html>", status_code=404, media_type="text/html")

    with pytest.raises(NotFound, match="HTTP 404"):
        await run(client.jobs.get, "x/attempts-page")


async def test_events_are_followed_over_broken_connections(client: Client, network: Cuts, api: Api) -> None:
    job = await run(client.jobs.create, **JOB)
    api.start(job.id)
    # One cut in the head, others in the middle of events.
    network.after = [100, 700, 1100, 900, 1500]

    async def work() -> None:
        for block in range(30):
            await run(api.append_event, job.id, "job.block", {"block": block, "note": "zwei\u2028Zeilen"})
        await run(api.end, job.id, "succeeded")

    worker = asyncio.create_task(work())
    events = await run(lambda: list(job.follow()))
    await worker
    assert [event.seq for event in events] == list(range(1, 33))
    assert events[5].data["note"] == "zwei\u2028Zeilen"
    assert network.made == 5
    assert (await run(job.refresh)).finished


async def test_following_a_job_that_ended_before_ends_at_once(client: Client, api: Api) -> None:
    job = await run(client.jobs.create, **JOB)
    api.start(job.id)
    api.end(job.id, "failed", {"code": "internal", "message": "m", "retryable": True})
    seen = await run(lambda: [event.type for event in job.follow()])
    assert seen == ["job.created", "job.failed"]
    assert await run(lambda: list(job.follow(after=2))) == []
    assert await run(lambda: [event.seq for event in client.jobs.follow(job.id, after=1)]) == [2]
    assert await run(lambda: [event.seq for event in client.jobs.events(job.id, after=1)]) == [2]
    with pytest.raises(NotFound):
        await run(lambda: list(client.jobs.follow("job_" + "0" * 32)))


async def test_following_gives_up_on_a_service_that_stays_away(network: Cuts) -> None:
    with Client("http://127.0.0.1:9", BOOTSTRAP_KEY, retry=QUICK) as client:
        with pytest.raises(ConnectionFailed, match="no answer from the service"):
            await run(lambda: list(client.jobs.follow("job_x", silence=0.2)))
        with pytest.raises(ConnectionFailed, match="is the service running"):
            await run(client.schemes)


async def test_a_service_that_asks_for_patience_gets_it(api: Api, client: Client) -> None:
    answers = [
        Response(status_code=503, headers={"Retry-After": "0"}),
        Response(status_code=429, headers={"Retry-After": "0"}),
    ]

    @api.app.middleware("http")
    async def busy(request: Request, call_next: Any) -> Response:
        return answers.pop(0) if answers else await call_next(request)

    assert (await run(client.schemes)).group_sizes
    assert answers == []
    answers.append(Response(status_code=503, headers={"Retry-After": "86400"}))
    with pytest.raises(Unavailable) as away:
        await run(client.schemes)
    assert away.value.retry_after == 86400


async def test_rows_are_uploaded_once(client: Client, network: Cuts, api: Api, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": [{"role": "user", "content": f"q{n}"}]}) + "\n" for n in range(3)))
    network.after = [10**9, 20]  # the lookup passes, the answer to the upload is lost
    dataset = await run(client.datasets.upload, rows)
    assert (dataset.rows, dataset.name, network.made) == (3, "rows.jsonl", 1)
    assert (await run(client.datasets.upload, rows)).id == dataset.id
    assert len(api.execute("SELECT id FROM datasets")) == 1
    assert (await run(client.datasets.upload, rows, reuse=False)).id != dataset.id
    job = await run(client.jobs.create, model=MODEL, calibration=dataset, scheme="W4A6")
    with pytest.raises(Conflict):
        await run(client.datasets.delete, dataset.id)
    await run(job.cancel)
    await run(client.datasets.delete, dataset.id)
    assert len(await run(lambda: list(client.datasets.list()))) == 1


async def test_bad_rows_are_named(client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    with pytest.raises(InvalidRequest) as refused:
        await run(client.datasets.upload, rows)
    assert refused.value.type == "invalid-dataset"
    assert refused.value.errors[0].row == 1


async def test_the_asynchronous_client_does_the_same(network: Cuts, api: Api, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}) + "\n")
    async with AsyncClient(network.url, BOOTSTRAP_KEY, retry=QUICK) as client:
        dataset = await client.datasets.upload(rows)
        network.after = [10]
        job = await client.jobs.create(model=MODEL, calibration=dataset, scheme="W4A6", labels={"a": "b"})
        assert [entry.id async for entry in client.jobs.list(label={"a": "b"}, page_size=1)] == [job.id]
        network.after = [400, 500]
        api.start(job.id)
        for block in range(5):
            api.append_event(job.id, "job.block", {"block": block})
        api.end(job.id, "succeeded")
        assert [event.seq async for event in job.follow()] == list(range(1, 8))
        assert network.made == 3
        api.publish(job.id, "a/b.txt", b"content", tmp_path)
        [path] = await job.pull(tmp_path / "out")
        assert path.read_bytes() == b"content"
        assert (await job.refresh()).finished
        assert await job.history() == []
        key = await client.keys.create(name="k", scopes=["jobs:read"])
        assert [entry.id async for entry in client.keys.list()] == [key.id]
        with pytest.raises(ApiError):
            await client.jobs.retry(job.id)


async def test_the_key_does_not_follow_a_redirect_to_another_host(api: Api, network: Cuts) -> None:
    heard: list[str | None] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        heard.append(next((line for line in head.splitlines() if line.startswith("authorization")), None))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    store = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    port = store.sockets[0].getsockname()[1]

    @api.app.middleware("http")
    async def redirect(request: Request, call_next: Any) -> Response:
        if request.url.path == "/away":
            return Response(status_code=307, headers={"Location": f"http://127.0.0.1:{port}/object"})
        return await call_next(request)

    def follow() -> bytes:
        with Client(network.url, BOOTSTRAP_KEY) as client, client.stream("/away", {}) as response:
            return response.read()

    assert await run(follow) == b"hi"
    assert heard == [None]
    store.close()
