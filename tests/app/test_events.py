"""Events as pages and as a stream that loses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import sqlalchemy

from app.access.auth import Caller
from app.jobs.stream import stream_events
from tests.app.conftest import Api, ok, problem, served

STREAM = {"Accept": "text/event-stream"}


async def read(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream, each checked to carry its number and type twice."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, colon, value = line.partition(": ")
        if colon and name:
            fields[name] = value
        elif not line and "data" in fields:
            event = json.loads(fields["data"])
            assert (fields["id"], fields["event"]) == (str(event["seq"]), event["type"])
            yield event
            fields = {}


async def collect(client: httpx.AsyncClient, job_id: str, **headers: str) -> list[int]:
    async with client.stream("GET", f"/v1/jobs/{job_id}/events", headers={**STREAM, **headers}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event["seq"] async for event in read(response)]


async def finished_job(api: Api, blocks: int) -> str:
    job_id: str = (await api.create_job())["id"]
    api.start(job_id)
    api.execute(
        """WITH j AS (UPDATE jobs SET event_seq = event_seq + %s WHERE id = %s RETURNING id)
           INSERT INTO events (job_id, seq, type, data)
           SELECT id, n + 2, 'job.block', jsonb_build_object('block', n) FROM j, generate_series(0, %s) AS n""",
        [blocks, job_id, blocks - 1],
    )
    api.end(job_id, "succeeded")
    return job_id


async def test_pages_go_on_where_the_last_one_ended(api: Api) -> None:
    job_id = await finished_job(api, 5)
    after, pages = 0, []
    while True:
        page = ok(await api.client.get(f"/v1/jobs/{job_id}/events", params={"after": after, "limit": 3}))
        pages.append([event["seq"] for event in page["data"]])
        after = page["next_after"]
        if not page["has_more"]:
            break
    assert pages == [[1, 2, 3], [4, 5, 6], [7]]
    empty = ok(await api.client.get(f"/v1/jobs/{job_id}/events", params={"after": after}))
    assert (empty["data"], empty["next_after"]) == ([], 7)


async def test_the_stream_of_a_finished_job_is_whole_and_ends(api: Api) -> None:
    job_id = await finished_job(api, 450)  # more than two reads of the database
    assert await collect(api.client, job_id) == list(range(1, 453))


async def test_the_stream_ends_when_the_terminal_event_fills_a_read(api: Api) -> None:
    job_id = await finished_job(api, 198)
    assert await asyncio.wait_for(collect(api.client, job_id), 10) == list(range(1, 201))


async def test_events_arrive_while_they_happen(api: Api) -> None:
    job_id = (await api.create_job())["id"]
    async with served(api) as client, client.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as response:
        events = read(response)
        assert (await anext(events))["type"] == "job.created"
        api.start(job_id)
        api.append_event(job_id, "job.block", {"block": 0})
        assert (await anext(events))["data"] == {"block": 0}
        api.end(job_id, "failed")
        assert (await anext(events))["type"] == "job.failed"
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_nothing_is_lost_or_doubled_over_dropped_connections(api: Api) -> None:
    job_id = (await api.create_job())["id"]
    api.start(job_id)

    async def work() -> None:
        for block in range(40):
            await asyncio.to_thread(api.append_event, job_id, "job.block", {"block": block})
        await asyncio.to_thread(api.end, job_id, "succeeded")

    async with served(api) as client:
        worker = asyncio.create_task(work())
        seen: list[int] = []
        ended = False
        while not ended:
            headers = {**STREAM, "Last-Event-ID": str(seen[-1] if seen else 0)}
            async with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
                taken = 0
                async for event in read(response):
                    seen.append(event["seq"])
                    ended = event["type"] == "job.succeeded"
                    taken += 1
                    if taken == 7:
                        break  # the connection drops in the middle
        await worker
    assert seen == list(range(1, 43))


async def test_a_client_that_has_seen_the_end_is_told_not_to_come_back(api: Api) -> None:
    job_id = await finished_job(api, 1)
    response = await api.client.get(f"/v1/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": "3"})
    assert response.status_code == 204


async def test_a_retried_job_streams_past_its_first_end(api: Api) -> None:
    job_id = (await api.create_job())["id"]
    api.start(job_id)
    api.end(job_id, "failed")
    ok(await api.client.post(f"/v1/jobs/{job_id}/retry"))
    api.start(job_id)
    async with served(api) as client, client.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as response:
        events = read(response)
        assert [(await anext(events))["type"] for _ in range(3)] == ["job.created", "job.failed", "job.retried"]
        api.end(job_id, "succeeded")
        assert [event["type"] async for event in events] == ["job.succeeded"]


@pytest.mark.parametrize("last", ["x", "-1", "9" * 30, "4", "²"])
async def test_an_impossible_last_event_is_refused(api: Api, last: str) -> None:
    job_id = await finished_job(api, 1)
    headers = [("Accept", "text/event-stream"), ("Last-Event-ID", last.encode())]
    problem(await api.client.get(f"/v1/jobs/{job_id}/events", headers=headers), 400, "malformed-request")  # type: ignore[arg-type]


async def test_events_come_in_two_forms_only(api: Api) -> None:
    job_id = (await api.create_job())["id"]
    response = await api.client.get(f"/v1/jobs/{job_id}/events", headers={"Accept": "image/png"})
    problem(response, 406, "not-acceptable")


async def test_layers_and_attempts_are_reported(api: Api) -> None:
    job_id = (await api.create_job())["id"]
    api.start(job_id)
    for block in range(3):
        place = {"stack": "vision", "index": None} if block == 2 else {}
        report = {"seconds_by_phase": {"fit": 1.5}, "groups": [{"name": f"g{block}"}], **place}
        api.execute(
            "INSERT INTO layers (job_id, block, attempt, seconds, report, files) VALUES (%s, %s, 1, 2.0, %s, '[]')",
            [job_id, block, json.dumps(report)],
        )
    api.execute(
        "INSERT INTO attempts (job_id, attempt, worker, outcome) VALUES (%s, 1, 'w1', 'lease_expired')", [job_id]
    )
    page = ok(await api.client.get(f"/v1/jobs/{job_id}/layers", params={"limit": 2}))
    assert [layer["groups"][0]["name"] for layer in page["data"]] == ["g0", "g1"]
    assert page["has_more"] is True
    rest = ok(await api.client.get(f"/v1/jobs/{job_id}/layers", params={"after": 1}))
    assert [(layer["block"], layer["stack"], layer["index"]) for layer in rest["data"]] == [(2, "vision", None)]
    assert page["data"][0]["stack"] is None
    attempts = ok(await api.client.get(f"/v1/jobs/{job_id}/attempts"))["data"]
    assert [(attempt["worker"], attempt["outcome"]) for attempt in attempts] == [("w1", "lease_expired")]


async def always() -> bool:
    return True


async def test_a_stream_ends_soon_after_its_key(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.jobs.stream.ASK_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr("app.jobs.stream.KEEPALIVE_SECONDS", 0.2)
    job_id = (await api.create_job())["id"]
    key = ok(await api.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs:read"]}), 201)
    async with served(api) as client:
        theirs = {**STREAM, "Authorization": f"Bearer {key['key']}"}
        async with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=theirs) as response:
            events = read(response)
            assert (await anext(events))["type"] == "job.created"
            api.start(job_id)
            await asyncio.sleep(0.5)
            api.append_event(job_id, "job.block", {"block": 0})
            assert (await anext(events))["type"] == "job.block"  # it had been asked for again, and was good
            ok(await api.client.delete(f"/v1/keys/{key['id']}"))
            await asyncio.sleep(0.5)
            api.end(job_id, "succeeded")
            assert "job.succeeded" not in [event["type"] async for event in events]
        assert (await client.get(f"/v1/jobs/{job_id}/events", headers=theirs)).status_code == 401


async def test_many_followers_cost_the_database_no_more_than_one(api: Api) -> None:
    job_id = (await api.create_job())["id"]
    api.start(job_id)
    statements: list[str] = []

    def count(*arguments: Any) -> None:
        statements.append(arguments[2])

    sqlalchemy.event.listen(api.service.engine.sync_engine, "before_cursor_execute", count)
    tenant = Caller(key_id="k", tenant="default", scopes=frozenset())
    sessions = api.service.sessions_of(tenant)
    followers = 300

    async def follow() -> bytes:
        stream = stream_events(
            api.app.state.feed, sessions, tenant="default", job_id=job_id, after=0, still_allowed=always
        )
        return b"".join([part async for part in stream])

    following = [asyncio.create_task(follow()) for _ in range(followers)]
    while api.app.state.feed.followers < followers:
        await asyncio.sleep(0.01)
    while not any(channel.last_seq for channel in api.app.state.feed._channels.values()):
        await asyncio.sleep(0.01)
    for block in range(20):
        await asyncio.to_thread(api.append_event, job_id, "job.block", {"block": block})
    await asyncio.to_thread(api.end, job_id, "succeeded")
    received = await asyncio.gather(*following)
    assert len(set(received)) == 1
    ids = [int(line[4:]) for line in received[0].decode().splitlines() if line.startswith("id: ")]
    assert ids == list(range(1, 23))
    assert len(statements) < followers
    assert api.app.state.feed.followers == 0


async def test_a_follower_that_lags_behind_the_tail_still_gets_everything(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = (await api.create_job())["id"]
    api.start(job_id)
    sessions = api.service.sessions_of(Caller(key_id="k", tenant="default", scopes=frozenset()))
    seen: list[int] = []

    async def follow_slowly() -> None:
        stream = stream_events(
            api.app.state.feed, sessions, tenant="default", job_id=job_id, after=0, still_allowed=always
        )
        async for part in stream:
            seen.extend(int(line[4:]) for line in part.decode().splitlines() if line.startswith("id: "))
            await asyncio.sleep(0.5)

    monkeypatch.setattr("app.jobs.feed.BATCH", 3)
    slow = asyncio.create_task(follow_slowly())
    for block in range(30):
        await asyncio.to_thread(api.append_event, job_id, "job.block", {"block": block})
        for channel in api.app.state.feed._channels.values():
            while len(channel.tail) > 4:
                channel.tail.popleft()
    await asyncio.to_thread(api.end, job_id, "succeeded")
    await asyncio.wait_for(slow, 30)
    assert seen == list(range(1, 33))


async def test_a_feed_that_fails_sends_its_followers_home_and_looks_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: the one task for all that follow would be gone, and they would wait for ever."""
    job_id = (await api.create_job())["id"]
    look, failed = type(api.app.state.feed)._look, []

    async def failing(feed: Any) -> None:
        await look(feed)
        if not failed:
            failed.append(feed)
            raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(type(api.app.state.feed), "_look", failing)
    async with served(api) as client, asyncio.timeout(10):
        assert await collect(client, job_id) == [1]
        assert failed
        async with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as response:
            seen = read(response)
            assert (await anext(seen))["seq"] == 1
            ok(await client.post(f"/v1/jobs/{job_id}/cancel"))
            assert [event["seq"] async for event in seen] == [2, 3]


async def test_the_log_has_a_line_for_every_event_and_no_value_makes_another(api: Api) -> None:
    job = await api.create_job()
    api.start(job["id"])
    api.append_event(job["id"], "job.warning", {"message": "two\nlines = one", "rows": 6, "error": {"base": 0.5}})
    response = await api.client.get(f"/v1/jobs/{job['id']}/logs")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    events = ok(await api.client.get(f"/v1/jobs/{job['id']}/events"))["data"]
    lines = response.text.splitlines()
    assert [line.split(" ")[1:3] for line in lines] == [[f"#{event['seq']}", event["type"]] for event in events]
    for said in (' message="two\\nlines = one"', " rows=6", ' error={"base":0.5}'):  # in PostgreSQL's order
        assert said in lines[-1]
    last = await api.client.get(f"/v1/jobs/{job['id']}/logs", params={"tail": 1})
    assert last.text.splitlines() == lines[-1:]
    problem(await api.client.get(f"/v1/jobs/{job['id']}/logs", params={"tail": 0}), 422, "invalid-request")


async def test_an_empty_last_event_id_is_none(api: Api) -> None:
    job = await api.create_job()
    api.start(job["id"])
    api.end(job["id"], "succeeded")
    response = await api.client.get(f"/v1/jobs/{job['id']}/events", headers={**STREAM, "Last-Event-ID": ""})
    assert response.status_code == 200
    assert "id: 1\n" in response.text
