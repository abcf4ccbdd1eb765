"""Downloads of the client: whole, in parts over broken connections, checked, and never outside of their directory."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request

from quant_experts.client import Client, ClientError, ConnectionFailed, DigestMismatch, DownloadProgress, ServiceFault
from quant_experts.client.download import PARTS, _digest, target_of
from quant_experts.client.errors import Stopped
from quant_experts.client.file_lock import locked_file
from quant_experts.client.retries import RetryPolicy
from tests.app.conftest import BOOTSTRAP_KEY, Api, served
from tests.app.cutting import Cuts, cutting
from tests.app.test_client import JOB, QUICK, run
from tests.services import wait_until


@pytest.fixture
async def network(api: Api) -> AsyncIterator[Cuts]:
    async with served(api) as direct, cutting(direct.base_url.port or 0) as cuts:
        yield cuts


@pytest.fixture
async def client(network: Cuts) -> AsyncIterator[Client]:
    with Client(network.url, BOOTSTRAP_KEY, retry=QUICK) as client:
        yield client


async def finished(client: Client, api: Api, tmp_path: Path, files: dict[str, bytes]) -> Any:
    job = await run(client.jobs.create, **JOB)
    api.start(job.id)
    for name, content in files.items():
        api.publish(job.id, name, content, tmp_path)
    api.end(job.id, "succeeded")
    return job


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def store(files: dict[str, tuple[bytes, Callable[[int], Iterator[bytes]]]]) -> httpx.MockTransport:
    """A network over which the files of a job come as they are told to: file ``"3"`` by what is called with 3."""
    rows = [
        {"name": name, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(), "media_type": "", "url": ""}
        for name, (body, _) in files.items()
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if name == "artifacts":
            return httpx.Response(200, json={"data": [{**row, "created_at": "2026-01-01T00:00:00Z"} for row in rows]})
        return httpx.Response(200, content=files[name][1](int(name)))

    return httpx.MockTransport(answer)


def pulling() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pull")]


async def test_a_file_is_resumed_where_its_connection_broke(
    client: Client, network: Cuts, api: Api, tmp_path: Path
) -> None:
    body = content(3_000_000)
    job = await finished(client, api, tmp_path, {"model.safetensors": body})
    network.requests.clear()
    network.after = [10**9, 400_000, 100, 900_000]  # the list of files passes
    seen: list[DownloadProgress] = []
    [path] = await run(job.pull, tmp_path / "out", on_progress=seen.append)
    assert path.read_bytes() == body
    assert network.made == 3
    assert all(b"accept-encoding: identity" in head.lower() for head in network.requests if b"/artifacts/" in head)
    asked = [line for head in network.requests for line in head.decode().lower().splitlines() if "range" in line]
    starts = [int(line.removeprefix("range: bytes=").removesuffix("-")) for line in asked]
    assert starts == sorted(starts)
    assert 0 < starts[0] < 400_000
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert (seen[-1].done, seen[-1].total, seen[-1].files_done, seen[-1].files) == (3_000_000, 3_000_000, 1, 1)
    assert not (tmp_path / "out" / PARTS).exists()


async def test_a_later_call_goes_on_and_sends_nothing_twice(
    client: Client, network: Cuts, api: Api, tmp_path: Path
) -> None:
    files = {"a.bin": content(1_500_000, 1), "sub/b.bin": content(700_000, 2), "empty": b""}
    job = await finished(client, api, tmp_path, files)
    out = tmp_path / "out"
    (out / PARTS).mkdir(parents=True)
    digest = hashlib.sha256(files["a.bin"]).hexdigest()
    (out / PARTS / f"{digest}.part").write_bytes(files["a.bin"][:1_000_000])
    network.requests.clear()
    paths = await run(job.pull, out)
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in paths} == files
    assert any(b"bytes=1000000-" in head for head in network.requests)
    network.requests.clear()
    await run(job.pull, out)
    assert len(network.requests) == 1  # the list of files
    (out / "a.bin").write_bytes(content(1_500_000, 3))
    await run(job.pull, out)
    assert (out / "a.bin").read_bytes() == files["a.bin"]


async def test_an_export_is_a_directory_of_its_own(client: Client, api: Api, tmp_path: Path) -> None:
    inside = {"config.json": b"{}", "templates/a.jinja": b"x"}
    job = await finished(
        client, api, tmp_path, {"config.json": b"other", **{f"exports/dequantized/{n}": c for n, c in inside.items()}}
    )
    paths = await run(job.pull, tmp_path / "out", export="dequantized")
    assert {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in paths} == inside
    with pytest.raises(ClientError, match=r"has no files in exports/compressed-tensors/"):
        await run(job.pull, tmp_path / "out", export="compressed-tensors")


@pytest.mark.parametrize(("ignored", "fails"), [(True, False), (False, True)])
async def test_a_service_that_sends_other_bytes_than_were_asked_for_spoils_no_file(
    client: Client, api: Api, tmp_path: Path, ignored: bool, fails: bool
) -> None:
    """The whole file in spite of ``Range`` is begun anew; a range that is another one is an error."""

    @api.app.middleware("http")
    async def elsewhere(request: Request, call_next: Any) -> Any:
        headers = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
        if "/artifacts/" in request.url.path:
            request.scope["headers"] = headers if ignored else [*headers, (b"range", b"bytes=5-")]
        return await call_next(request)

    body = content(4000)
    job = await finished(client, api, tmp_path, {"a.bin": body})
    part = tmp_path / "out" / PARTS / f"{hashlib.sha256(body).hexdigest()}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(body[:1000])
    steps: list[DownloadProgress] = []
    if fails:
        with pytest.raises(ConnectionFailed, match="asked for bytes from 1000"):
            await run(job.pull, tmp_path / "out", on_progress=steps.append)
        assert part.read_bytes() == body[:1000]
        return
    [path] = await run(job.pull, tmp_path / "out", on_progress=steps.append)
    assert path.read_bytes() == body
    assert (steps[-1].done, steps[-1].total) == (4000, 4000)


async def test_bytes_behind_the_end_of_a_part_are_cut_off(client: Client, api: Api, tmp_path: Path) -> None:
    body = content(4000)
    job = await finished(client, api, tmp_path, {"a.bin": body})
    part = tmp_path / "out" / PARTS / f"{hashlib.sha256(body).hexdigest()}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(body + b"more")
    [path] = await run(job.pull, tmp_path / "out")
    assert path.read_bytes() == body


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * 5000])
async def test_a_part_that_is_not_of_the_file_is_thrown_away(
    client: Client, api: Api, tmp_path: Path, left: bytes
) -> None:
    body = content(4000)
    job = await finished(client, api, tmp_path, {"a.bin": body})
    part = tmp_path / "out" / PARTS / f"{hashlib.sha256(body).hexdigest()}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    [path] = await run(job.pull, tmp_path / "out")
    assert path.read_bytes() == body


async def test_a_file_that_is_not_the_announced_one_never_gets_its_name(
    client: Client, api: Api, tmp_path: Path
) -> None:
    job = await finished(client, api, tmp_path, {"a.bin": b"right", "b.bin": b"other"})
    api.execute("UPDATE artifacts SET sha256 = %s WHERE name = 'a.bin'", ["0" * 64])
    with pytest.raises(DigestMismatch, match=r"a\.bin: sha256 is"):
        await run(job.pull, tmp_path / "out")
    assert not (tmp_path / "out" / "a.bin").exists()


async def test_the_first_error_ends_all_and_keeps_the_parts(
    client: Client, api: Api, network: Cuts, tmp_path: Path
) -> None:
    job = await finished(client, api, tmp_path, {"gone.bin": content(9000, 1), "big.bin": content(2_000_000, 2)})
    key = api.execute("SELECT key FROM artifacts WHERE name = 'gone.bin'")[0][0]
    api.service.storage.delete(key)
    with pytest.raises(ServiceFault) as fault:
        await run(job.pull, tmp_path / "out", parallel=1)
    assert fault.value.type == "object-missing"
    assert (tmp_path / "out" / "big.bin").exists()


async def test_files_of_the_same_bytes_all_arrive(client: Client, api: Api, tmp_path: Path) -> None:
    files = {f"{number}/config.json": content(300_000) for number in range(8)}
    job = await finished(client, api, tmp_path, files)
    steps: list[DownloadProgress] = []
    paths = await run(job.pull, tmp_path / "out", parallel=8, on_progress=steps.append)
    assert [path.read_bytes() for path in paths] == list(files.values())
    assert (steps[-1].done, steps[-1].total, steps[-1].files_done) == (2_400_000, 2_400_000, 8)
    assert not (tmp_path / "out" / PARTS).exists()


async def test_two_calls_into_one_directory_wait_for_each_other(client: Client, api: Api, tmp_path: Path) -> None:
    files = {f"{number}.bin": content(2_000_000, number) for number in range(3)}
    job = await finished(client, api, tmp_path, files)
    out = tmp_path / "out"
    spoiled = out / PARTS / f"{hashlib.sha256(files['0.bin']).hexdigest()}.part"
    spoiled.parent.mkdir(parents=True)
    spoiled.write_bytes(b"x" * 1000)
    for paths in await asyncio.gather(*(run(job.pull, out, parallel=2) for _ in range(4))):
        assert {path.name: path.read_bytes() for path in paths} == files
    assert sorted(path.name for path in out.iterdir()) == sorted(files)


def test_a_part_is_of_one_caller_at_a_time(tmp_path: Path) -> None:
    part, entered = tmp_path / PARTS / "a.part", threading.Event()

    def enter() -> None:
        with locked_file(part, threading.Event()) as file:
            assert file.read() == b"all of it"
            entered.set()

    other = threading.Thread(target=enter)
    with locked_file(part, threading.Event()) as file:
        other.start()
        assert not entered.wait(0.3)
        file.write(b"all of it")
    assert entered.wait(20)
    other.join()


async def test_a_part_that_another_call_took_first_is_not_missed(
    client: Client, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await finished(client, api, tmp_path, {"a.bin": b"a" * 1000})
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: rename(self, to) and rename(self, to))
    steps: list[DownloadProgress] = []
    [path] = await run(job.pull, tmp_path / "out", on_progress=steps.append)
    assert (path.read_bytes(), steps[-1].done, steps[-1].files_done) == (b"a" * 1000, 1000, 1)


async def test_no_more_files_than_were_allowed_are_on_their_way_at_once(tmp_path: Path) -> None:
    now, most, together = 0, 0, threading.Barrier(2)
    lock, third = threading.Lock(), threading.Event()

    def arriving(number: int) -> Iterator[bytes]:
        nonlocal now, most
        with lock:
            now += 1
            if now > 2:
                third.set()
            most = max(most, now)
        together.wait(20)
        assert not third.wait(0.1)
        yield content(1000, number)
        with lock:
            now -= 1

    with Client(
        "http://x", BOOTSTRAP_KEY, transport=store({f"{n}": (content(1000, n), arriving) for n in range(6)})
    ) as c:
        await run(c.jobs.pull, "job_x", tmp_path / "out", parallel=2)
    assert most == 2


async def test_the_first_error_stops_the_others_in_the_middle(tmp_path: Path) -> None:
    begun = threading.Event()

    def arriving(number: int) -> Iterator[bytes]:
        if number:
            begun.wait(20)
            raise httpx.ReadError("cut")
        for _ in range(4000):
            begun.set()
            yield b"x"
            time.sleep(0.01)

    files = {"0": (bytes(4000), arriving), "1": (b"y", arriving)}
    policy = RetryPolicy(retries=0)
    with (
        Client("http://x", BOOTSTRAP_KEY, retry=policy, transport=store(files)) as client,
        pytest.raises(ConnectionFailed, match="1: cut"),
    ):
        await run(client.jobs.pull, "job_x", tmp_path / "out")
    assert not pulling()
    part = tmp_path / "out" / PARTS / f"{hashlib.sha256(bytes(4000)).hexdigest()}.part"
    assert 0 < part.stat().st_size < 4000


async def test_who_interrupts_a_download_does_not_wait_for_a_network_that_hangs(tmp_path: Path) -> None:
    over = threading.Event()

    def arriving(number: int) -> Iterator[bytes]:
        if not number and not over.wait(60):
            over.set()
        yield b"y" if number else b"x"

    def interrupt(step: DownloadProgress) -> None:
        if step.files_done:
            raise KeyboardInterrupt

    files = {"0": (b"x", arriving), "1": (b"y", arriving)}
    with Client("http://x", BOOTSTRAP_KEY, transport=store(files)) as client, pytest.raises(KeyboardInterrupt):
        await run(client.jobs.pull, "job_x", tmp_path / "out", on_progress=interrupt)
    assert not over.is_set()
    over.set()
    await run(wait_until, lambda: not pulling(), what="the end of the thread that was left")


def test_who_stops_while_a_file_is_hashed_does_not_wait_for_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"a")
    stop = threading.Event()
    assert _digest(tmp_path / "a.bin", stop) == hashlib.sha256(b"a").hexdigest()
    stop.set()
    with pytest.raises(Stopped):
        _digest(tmp_path / "a.bin", stop)


async def test_a_callback_that_raises_ends_the_download(client: Client, api: Api, tmp_path: Path) -> None:
    job = await finished(client, api, tmp_path, {f"{n}.bin": content(100_000, n) for n in range(6)})

    def refuse(step: DownloadProgress) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await run(job.pull, tmp_path / "out", on_progress=refuse)
    assert not pulling()


async def test_only_what_is_there_can_be_asked_for(client: Client, api: Api, tmp_path: Path) -> None:
    job = await run(client.jobs.create, **JOB)
    with pytest.raises(ClientError, match="appear all at once"):
        await run(job.pull, tmp_path / "out")
    api.publish(job.id, "a.bin", b"a", tmp_path)
    api.publish(job.id, "b.bin", b"b", tmp_path)
    with pytest.raises(ClientError, match=r"no file 'c\.bin'"):
        await run(job.pull, tmp_path / "out", names=["a.bin", "c.bin"])
    paths = await run(job.pull, tmp_path / "out", names=["b.bin"])
    assert [path.name for path in paths] == ["b.bin"]


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc/passwd", "a/../../b", "", ".", "a//b", "a/./b", "C:\\x", "a\\b", "a\0b", "a:b", f"{PARTS}/x", "a/"],
)
def test_a_name_never_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClientError, match="nothing is written"):
        target_of(tmp_path, name)


def test_plain_names_are_kept(tmp_path: Path) -> None:
    assert target_of(tmp_path, "sub/model-00001-of-00002.safetensors").parent == tmp_path / "sub"
