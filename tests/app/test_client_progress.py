"""The progress of an upload: by bytes within a part, right over retries, never back without saying so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response

from app.uploads.service import abort_upload
from quant_experts.client import AsyncClient, Client, UploadProgress
from quant_experts.client.requests import datasets as requests
from quant_experts.client.upload_progress import CHUNK
from tests.app.conftest import BOOTSTRAP_KEY, Api
from tests.app.test_client import QUICK, run
from tests.app.test_client_surface import client, network  # noqa: F401 -- fixtures
from tests.app.test_datasets import jsonl, row

ROWS = jsonl(*(row(text=f"row {number} " + "x" * 5_000) for number in range(100)))
PART = len(ROWS) // 3 + 1


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    return path


def check_that_it_only_goes_back_aloud(steps: list[UploadProgress]) -> None:
    assert steps[-1].done == steps[-1].total == len(ROWS)
    for before, after in pairwise(steps):
        assert after.done >= before.done or after.again > before.again
        assert after.again >= before.again


def moves(steps: list[UploadProgress]) -> int:
    return len({step.done for step in steps})


async def test_a_file_that_goes_at_once_moves_by_bytes(client: Client, rows: Path) -> None:  # noqa: F811
    steps: list[UploadProgress] = []
    await run(client.datasets.upload, rows, on_progress=steps.append)
    assert moves(steps) >= len(ROWS) // CHUNK
    check_that_it_only_goes_back_aloud(steps)
    assert {(step.parts, step.again) for step in steps} == {(1, 0)}
    assert [step.parts_done for step in (steps[0], steps[-1])] == [0, 1]


async def test_a_part_moves_by_bytes_in_both_clients(client: Client, rows: Path) -> None:  # noqa: F811
    async with AsyncClient(client.access.url, BOOTSTRAP_KEY, retry=QUICK) as awaited:
        for number in range(2):
            steps: list[UploadProgress] = []
            how: dict[str, Any] = {"part_bytes": PART, "on_progress": steps.append, "reuse": False}
            if number:
                await awaited.datasets.upload(rows, **how)
            else:
                await run(client.datasets.upload, rows, **how)
            assert moves(steps) >= len(ROWS) // CHUNK
            check_that_it_only_goes_back_aloud(steps)
            assert steps[-1] == UploadProgress(len(ROWS), len(ROWS), 3, 3, 0)
        begun = await awaited.send(requests.begin_upload(name="x"))
        counted: list[int] = []
        await awaited.send(replace(requests.put_part(begun.id, 1, ROWS), on_sent=counted.append))
        assert counted == [*range(0, len(ROWS), CHUNK), len(ROWS)]


async def test_a_part_that_is_sent_again_says_so_and_keeps_what_was_counted(
    client: Client,  # noqa: F811
    api: Api,
    rows: Path,
) -> None:
    refused: list[str] = []

    @api.app.middleware("http")
    async def away(request: Request, call_next: Callable[..., Any]) -> Response:
        if request.method == "PUT" and len(refused) < 2:
            await request.body()
            refused.append(request.url.path)
            return Response(status_code=503)
        answer: Response = await call_next(request)
        return answer

    steps: list[UploadProgress] = []
    await run(client.datasets.upload, rows, part_bytes=PART, parallel=1, on_progress=steps.append)
    check_that_it_only_goes_back_aloud(steps)
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1] == UploadProgress(len(ROWS), len(ROWS), 3, 3, again=2)


async def test_a_file_that_is_sent_again_at_once_says_so(client: Client, api: Api, rows: Path) -> None:  # noqa: F811
    answers = [503, 503]

    @api.app.middleware("http")
    async def away(request: Request, call_next: Callable[..., Any]) -> Response:
        if request.url.path == "/v1/datasets" and request.method == "POST" and answers:
            await request.body()
            return Response(status_code=answers.pop())
        answer: Response = await call_next(request)
        return answer

    steps: list[UploadProgress] = []
    await run(client.datasets.upload, rows, on_progress=steps.append)
    check_that_it_only_goes_back_aloud(steps)
    assert steps[-1] == UploadProgress(len(ROWS), len(ROWS), 1, 1, again=2)


@pytest.mark.parametrize("at", ["/complete", "/parts/3"])
async def test_an_upload_that_the_service_lost_begins_anew_aloud(
    client: Client,  # noqa: F811
    api: Api,
    rows: Path,
    at: str,
) -> None:
    lost: list[str] = []

    @api.app.middleware("http")
    async def lose(request: Request, call_next: Callable[..., Any]) -> Response:
        if request.url.path.endswith(at) and not lost:
            lost.append(request.url.path.split("/")[4])
            await abort_upload(tenant="default", upload_id=lost[0], storage=api.service.storage)
        answer: Response = await call_next(request)
        return answer

    steps: list[UploadProgress] = []
    dataset = await run(client.datasets.upload, rows, part_bytes=PART, parallel=1, on_progress=steps.append)
    assert (dataset.bytes, len(lost)) == (len(ROWS), 1)
    check_that_it_only_goes_back_aloud(steps)
    back = [after for before, after in pairwise(steps) if after.done < before.done]
    assert [(step.done, step.parts_done, step.again) for step in back] == [(0, 0, 1)]


async def test_an_upload_that_another_call_has_completed_is_its_dataset(client: Client, api: Api, rows: Path) -> None:  # noqa: F811
    """Two that upload the same file go on with the same upload."""
    made: list[str] = []

    def complete(step: UploadProgress) -> None:
        if step.parts_done == 2 and not made:
            with Client(client.access.url, BOOTSTRAP_KEY, retry=QUICK) as another:
                made.append(another.datasets.upload(rows, part_bytes=PART).id)

    dataset = await run(client.datasets.upload, rows, part_bytes=PART, parallel=1, on_progress=complete)
    assert [dataset.id] == made
    assert api.execute("SELECT id FROM datasets") == [(dataset.id,)]
