"""A tenant who floods the service with slow reads keeps nobody else from it, and who hangs up gives the turn back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.web.limiter import TenantLimiter
from app.web.problems import Problem
from core.storage import LocalStorage
from quant_experts.planning.hub import _Reader
from tests.app.conftest import Api, ok, problem, served
from tests.app.test_datasets import jsonl, row
from tests.models import make_model
from tests.planning.directory_hub import directory_hub
from tests.services import wait_until


@contextmanager
def storage_that_hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Reading a file waits until the block ends; yields the keys that are asked for."""
    asked: list[str] = []
    over = threading.Event()
    fetch = LocalStorage.fetch

    def waiting(self: LocalStorage, key: str, target: Path) -> None:
        asked.append(key)
        over.wait(30)
        fetch(self, key, target)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "fetch", waiting)
        try:
            yield asked
        finally:
            over.set()


async def key_of(api: Api, tenant: str) -> str:
    scopes = ["datasets:read", "datasets:write", "jobs:read"]
    new = {"name": "k", "scopes": scopes, "tenant": tenant}
    return str(ok(await api.client.post("/v1/keys", json=new), 201)["key"])


async def uploaded(api: Api, key: str) -> str:
    async with api.as_key(key) as client:
        return str(ok(await client.post("/v1/datasets", files={"file": ("r.jsonl", jsonl(row()))}), 201)["id"])


async def test_a_flood_of_slow_reads_leaves_the_api_to_everybody_else(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy, other = await key_of(api, "greedy"), await key_of(api, "other")
    dataset, theirs = await uploaded(api, greedy), await uploaded(api, other)
    async with api.as_key(greedy) as flood, api.as_key(other) as client:
        with storage_that_hangs(monkeypatch) as asked:
            reads = [asyncio.create_task(flood.get(f"/v1/datasets/{dataset}/statistics")) for _ in range(60)]
            await asyncio.to_thread(wait_until, lambda: asked, what="the first read")
            for path in ("/readyz", "/healthz", "/v1/jobs", "/v1/datasets", f"/v1/datasets/{theirs}"):
                answer = await asyncio.wait_for(client.get(path), 5)
                assert answer.status_code == 200, (path, answer.text)
            rows = asyncio.create_task(client.get(f"/v1/datasets/{theirs}/rows"))
            await asyncio.to_thread(wait_until, lambda: len(asked) == 2, what="the other tenant's turn")
        ok(await rows)
        assert {read.status_code for read in await asyncio.gather(*reads)} == {200}


async def test_who_has_too_many_waiting_is_told_to_come_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = await uploaded(api, key := await key_of(api, "greedy"))
    async with api.as_key(key) as client:
        with storage_that_hangs(monkeypatch):
            reads = [asyncio.create_task(client.get(f"/v1/datasets/{dataset}/rows")) for _ in range(120)]
            done, waiting = await asyncio.wait(reads, timeout=3, return_when=asyncio.FIRST_COMPLETED)
            refused = problem(done.pop().result(), 429, "busy")
            assert refused["retryable"]
        answers = await asyncio.gather(*waiting)
        assert 200 in {answer.status_code for answer in answers}


async def test_a_client_that_hangs_up_gives_its_turn_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.service.readers, "_each", 1)
    dataset = ok(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", jsonl(row()))}), 201)["id"]
    async with served(api) as client:
        with storage_that_hangs(monkeypatch) as asked:
            path = f"/v1/datasets/{dataset}/rows"
            reads = [asyncio.create_task(client.get(path)) for _ in range(20)]
            await asyncio.to_thread(wait_until, lambda: asked, what="the first read")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_open_at_most(api, 1), 0.1)
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
            await asyncio.wait_for(_open_at_most(api, 1), 10)  # whose thread the storage still holds
            assert len(asked) == 1
        ok(await client.get(path))


async def _open_at_most(api: Api, number: int) -> None:
    """Wait until so many requests are being answered."""
    while sum(sample.value for metric in api.service.telemetry.open.collect() for sample in metric.samples) > number:
        await asyncio.sleep(0.01)


async def test_a_hub_that_is_slow_keeps_nobody_from_the_files(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("qwen2_vl", tmp_path / "tiny", blocks=1)
    dataset = ok(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", jsonl(row()))}), 201)["id"]
    path, working = f"/v1/datasets/{dataset}/statistics", api.service.readers._running
    read, at_files = _Reader._read, list[int]()

    def watched(self: _Reader, name: str, size: int, start: int = 0) -> bytes:
        at_files.append(working.total())
        return read(self, name, size, start)

    with directory_hub(**{"models/acme/tiny-vl": model}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.stalled.set()
        counts = [asyncio.create_task(api.client.get(path, params={"model": "acme/tiny-vl"})) for _ in range(4)]
        while api.service.planners._running.total() + working.total() == 0:
            await asyncio.sleep(0.01)
        try:
            ok(await asyncio.wait_for(api.client.get(f"/v1/datasets/{dataset}/rows"), 10))
        finally:
            hub.stalled.clear()
        for answer in await asyncio.gather(*counts):
            ok(answer)
        monkeypatch.setattr(_Reader, "_read", watched)
        ok(await api.client.get(path, params={"model": "acme/tiny-vl"}))
    assert set(at_files) == {0}, "the hub is asked while a turn at files is held"


async def test_tenants_take_turns_and_one_has_no_more_than_its_share() -> None:
    turns = TenantLimiter(most=2, each=1)
    came: list[str] = []
    free = asyncio.Event()

    async def work(tenant: str) -> None:
        async with turns.slot(tenant):
            came.append(tenant)
            await free.wait()

    tasks = [asyncio.create_task(work(tenant)) for tenant in ("a", "a", "a", "b", "b", "c")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert came == ["a", "b"]
    free.set()
    await asyncio.gather(*tasks)
    assert came == ["a", "b", "c", "a", "b", "a"]


async def test_who_stops_waiting_keeps_no_place() -> None:
    turns = TenantLimiter(most=1, each=1, most_waiting=1)
    async with turns.slot("a"):
        second = asyncio.create_task(turns.slot("a").__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(Problem):
            await turns.slot("a").__aenter__()
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        third = asyncio.create_task(turns.slot("a").__aenter__())
        await asyncio.sleep(0)
        assert not third.done()
    await asyncio.wait_for(third, 1)
