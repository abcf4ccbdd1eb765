"""What strangers wrote is parsed in children: one that takes too much dies alone, and is behind walls meanwhile."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.parsing import Died, parse
from app.parsing.children import _zygote
from app.parsing.operations import CHECK, bounds_of
from core.confinement import Limits
from tests.app.conftest import Api, job_body, ok, problem
from tests.app.test_datasets import jsonl, row, upload
from tests.services import wait_until


def dictionary_bomb(*, messages: int, text_bytes: int) -> bytes:
    """Every message refers to the same text, which the file holds once: nothing in its header says what it becomes."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * messages, pa.int32()), pa.array(["x" * text_bytes]))
    message = pa.StructArray.from_arrays([pa.array(["user"] * messages), text], ["role", "content"])
    table = pa.table({"messages": pa.ListArray.from_arrays(pa.array([0, messages], pa.int32()), message)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


@asynccontextmanager
async def unblocked(most: float) -> AsyncIterator[None]:
    """Fails when the event loop stood still for ``most`` seconds meanwhile."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    assert longest < most


def children() -> list[psutil.Process]:
    """That parse at this moment."""
    zygote = _zygote()._process
    return [] if zygote is None else [one for one in psutil.Process(zygote.pid).children() if parses(one)]


def parses(child: psutil.Process) -> bool:
    try:
        return bool(child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it has just ended
        return False


async def test_a_small_file_that_becomes_a_huge_one_is_refused_and_nobody_waits_for_it(api: Api) -> None:
    bomb = dictionary_bomb(messages=200, text_bytes=16_000_000)
    assert len(bomb) < 20_000
    before = psutil.Process().memory_info().rss
    async with unblocked(1.0):
        refused = problem(await upload(api, bomb, "rows.parquet"), 422, "invalid-dataset")
    assert "memory" in refused["detail"]
    assert psutil.Process().memory_info().rss - before < 200 << 20
    ok(await upload(api, jsonl(row())), 201)


async def test_a_header_of_many_megabytes_is_the_childs_to_read(api: Api) -> None:
    model = Path(str(api.settings.model_root)) / "hostile"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    header = json.dumps({f"t{n}": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]} for n in range(340_000)})
    assert 20_000_000 < len(header) < 25_000_000
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    before = psutil.Process().memory_info().rss
    rows = {"dataset": ok(await upload(api, jsonl(row())), 201)["id"]}
    body = job_body(model={"id": "local/hostile"}, calibration=rows)
    async with unblocked(1.0):
        plan = ok(await api.client.post("/v1/jobs:plan", json=body))
    assert "invalid_model" in {refusal["code"] for refusal in plan["refusals"]}
    assert psutil.Process().memory_info().rss - before < 200 << 20


async def test_one_that_takes_too_long_is_ended(tmp_path: Path, api: Api) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(jsonl(*(row() for _ in range(20_000))))
    with pytest.raises(Died, match="too much memory or time"):
        await parse(CHECK, bounds_of(api.settings), files=[rows], limits=Limits(memory=1 << 30, cpu=0))
    await asyncio.to_thread(wait_until, lambda: not children(), what="the end of the child")


async def test_nobody_waits_and_nothing_runs_on(tmp_path: Path, api: Api) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(jsonl(*(row() for _ in range(20_000))) * 20)
    without_end = bounds_of(api.settings.model_copy(update={"max_dataset_rows": 1 << 40}))
    reading = asyncio.create_task(parse(CHECK, without_end, files=[rows]))
    await asyncio.to_thread(wait_until, children, what="the child")
    group = Path(f"/proc/{children()[0].pid}/autogroup")
    if group.exists():  # else niceness counts among all
        await asyncio.to_thread(wait_until, lambda: group.read_text().endswith("nice 10\n"), what="stepping back")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.to_thread(wait_until, lambda: not children(), what="the end of the child")


async def test_the_process_that_children_come_from_is_started_again(tmp_path: Path, api: Api) -> None:
    ok(await upload(api, jsonl(row())), 201)
    zygote = _zygote()._process
    assert zygote is not None
    os.kill(zygote.pid, signal.SIGKILL)
    zygote.wait()
    ok(await upload(api, jsonl(row())), 201)


async def test_it_knows_nothing_of_the_service(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(await upload(api, jsonl(row())), 201)
    zygote = _zygote()._process
    assert zygote is not None
    environment: dict[str, Any] = psutil.Process(zygote.pid).environ()
    assert not [name for name in environment if name.startswith(("QE_", "AWS_", "HF_", "PG"))]
