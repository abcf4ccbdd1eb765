"""Downloads of the client: whole, in parts over broken connections, checked, and never outside of their directory."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request

from quant_experts.client import Client, ClientError, ConnectionFailed, DigestMismatch, ServiceFault, Transferred
from quant_experts.client.download import PARTS, target_of
from tests.app.conftest import BOOTSTRAP_KEY, Api, served
from tests.app.cutting import Cuts, cutting
from tests.app.test_client import JOB, QUICK, run


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


async def test_a_file_is_resumed_where_its_connection_broke(
    client: Client, network: Cuts, api: Api, tmp_path: Path
) -> None:
    body = content(3_000_000)
    job = await finished(client, api, tmp_path, {"model.safetensors": body})
    network.requests.clear()
    network.after = [10**9, 400_000, 100, 900_000]  # the list of files passes
    seen: list[Transferred] = []
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
    steps: list[Transferred] = []
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


async def test_a_callback_that_raises_ends_the_download(client: Client, api: Api, tmp_path: Path) -> None:
    job = await finished(client, api, tmp_path, {f"{n}.bin": content(100_000, n) for n in range(6)})

    def refuse(step: Transferred) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await run(job.pull, tmp_path / "out", on_progress=refuse)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pull")]


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
