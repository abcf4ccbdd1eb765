"""Datasets in parts: what arrives, what can be sent again, what is refused, and that nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.datasets.upload import uploads_directory
from core.contract.ids import new_id
from core.contract.uploads import LIVES, expires_at
from core.settings import Settings
from core.storage import LocalStorage
from tests.app.conftest import Api, ok, problem, served, started
from tests.app.test_datasets import data_uri, jsonl, parquet, picture, row
from tests.services import ObjectStore
from worker.keeper import sweep

ROWS = jsonl(*(row(data_uri(picture(size=(40, 30)))) for _ in range(20)))


def cut(content: bytes, pieces: int) -> list[bytes]:
    edges = [len(content) * number // pieces for number in range(pieces + 1)]
    return [content[first:end] for first, end in itertools.pairwise(edges)]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def begin(client: httpx.AsyncClient, **body: Any) -> str:
    return str(ok(await client.post("/v1/datasets/uploads", json=body), 201)["id"])


async def send(client: httpx.AsyncClient, upload: str, number: int, content: bytes) -> httpx.Response:
    return await client.put(f"/v1/datasets/uploads/{upload}/parts/{number}", content=content)


async def complete(client: httpx.AsyncClient, upload: str, sha256: str) -> httpx.Response:
    return await client.post(f"/v1/datasets/uploads/{upload}/complete", json={"sha256": sha256})


def left(api: Api) -> list[str]:
    """Everything that an unfinished upload can leave behind."""
    return [*api.service.storage.keys("uploads"), *(path.name for path in uploads_directory(api.settings).glob("*"))]


async def test_parts_sent_in_any_order_and_at_once_become_one_dataset(api: Api) -> None:
    upload = await begin(api.client, name="large rows")
    pieces = cut(ROWS, 7)
    order = random.Random(0).sample(range(7), 7)
    answers = await asyncio.gather(*(send(api.client, upload, number + 1, pieces[number]) for number in order))
    assert {ok(answer)["sha256"] for answer in answers} == {digest(piece) for piece in pieces}
    response = await complete(api.client, upload, digest(ROWS))
    dataset = ok(response, 201)
    assert (dataset["rows"], dataset["images"], dataset["name"]) == (20, 20, "large rows")
    assert (dataset["bytes"], dataset["sha256"]) == (len(ROWS), digest(ROWS))
    assert ok(await api.client.get(response.headers["location"])) == dataset
    key = api.execute("SELECT key FROM datasets")[0][0]
    with api.service.storage.open(key) as stored:
        assert stored.read() == ROWS
    assert left(api) == []
    problem(await api.client.get(f"/v1/datasets/uploads/{upload}"), 404, "not-found")


async def test_an_upload_goes_on_where_another_process_and_client_left_it(
    settings: Settings, object_store: ObjectStore
) -> None:
    changed = settings.model_copy(update={"storage_url": object_store.bucket()})
    content = parquet([{"messages": row()["messages"][1:]} for _ in range(30)])
    pieces = cut(content, 4)
    async with started(changed) as api:
        upload = await begin(api.client)
        for number in (1, 3):
            ok(await send(api.client, upload, number, pieces[number - 1]))
    async with started(changed.model_copy(update={"home": settings.home / "another"})) as api:
        there = ok(await api.client.get(f"/v1/datasets/uploads/{upload}"))
        assert [(part["number"], part["sha256"]) for part in there["parts"]] == [
            (1, digest(pieces[0])),
            (3, digest(pieces[2])),
        ]
        refused = problem(await complete(api.client, upload, digest(content)), 409, "upload-incomplete")
        assert "missing parts: 2;" in refused["detail"]
        for number in (2, 4):
            ok(await send(api.client, upload, number, pieces[number - 1]))
        dataset = ok(await complete(api.client, upload, digest(content)), 201)
        assert (dataset["format"], dataset["rows"]) == ("parquet", 30)
        assert left(api) == []


async def test_a_wrong_part_is_found_by_the_digest_and_sent_again(api: Api) -> None:
    upload = await begin(api.client)
    first, second = cut(ROWS, 2)
    ok(await send(api.client, upload, 1, first))
    ok(await send(api.client, upload, 2, second[:-1]))
    refused = problem(await complete(api.client, upload, digest(ROWS)), 409, "upload-incomplete")
    assert digest(ROWS[:-1]) in refused["detail"]
    ok(await send(api.client, upload, 2, second))
    there = ok(await api.client.get(f"/v1/datasets/uploads/{upload}"))
    assert (len(there["parts"]), there["bytes"]) == (2, len(ROWS))
    ok(await complete(api.client, upload, digest(ROWS)), 201)


async def test_rows_that_are_none_refuse_the_whole_and_the_parts_stay(api: Api) -> None:
    upload = await begin(api.client)
    bad = jsonl(row(), {"messages": []})
    ok(await send(api.client, upload, 1, bad))
    refused = problem(await complete(api.client, upload, digest(bad)), 422, "invalid-dataset")
    assert refused["errors"][0]["row"] == 2
    assert api.execute("SELECT id FROM datasets") == []
    good = jsonl(row(), row())
    ok(await send(api.client, upload, 1, good))
    ok(await complete(api.client, upload, digest(good)), 201)


async def test_two_versions_of_a_part_are_not_mixed(api: Api) -> None:
    upload = await begin(api.client)
    ok(await send(api.client, upload, 1, jsonl(row())))
    (key,) = (key for key in api.service.storage.keys("uploads") if "/p00001-" in key)
    # As if two clients had sent the part at the same moment, and each had looked before the other stored its own.
    source = api.settings.resolved_home / "other"
    source.write_bytes(b"other")
    api.service.storage.put(f"{key.rsplit('/', 1)[0]}/p00001-5-{digest(b'other')}", source)
    refused = problem(await complete(api.client, upload, digest(jsonl(row()))), 409, "upload-incomplete")
    assert "part 1 was sent twice" in refused["detail"]
    ok(await send(api.client, upload, 1, jsonl(row())))
    ok(await complete(api.client, upload, digest(jsonl(row()))), 201)


async def test_the_limits_of_a_dataset_hold_for_all_parts_together(api: Api) -> None:
    upload = await begin(api.client)
    half = b"\n" * (api.settings.max_dataset_bytes // 2)
    ok(await send(api.client, upload, 1, half))
    ok(await send(api.client, upload, 2, half))
    ok(await send(api.client, upload, 2, half))
    problem(await send(api.client, upload, 3, b"\n"), 413, "body-too-large")
    for number, content, status, slug in (
        (0, b"x", 422, "invalid-request"),
        (1001, b"x", 422, "invalid-request"),
        (3, b"", 422, "invalid-request"),
    ):
        problem(await send(api.client, upload, number, content), status, slug)
    assert len(ok(await api.client.get(f"/v1/datasets/uploads/{upload}"))["parts"]) == 2


async def test_a_client_that_goes_away_in_a_part_leaves_the_part_as_it_was(api: Api) -> None:
    async def broken() -> Any:
        yield b"\n" * 100_000
        raise ConnectionResetError

    async with served(api) as client:
        upload = await begin(client)
        ok(await send(client, upload, 1, b"first"))
        with pytest.raises(ConnectionResetError):
            await client.put(f"/v1/datasets/uploads/{upload}/parts/1", content=broken())
        (part,) = ok(await client.get(f"/v1/datasets/uploads/{upload}"))["parts"]
    assert part["sha256"] == digest(b"first")
    assert list(uploads_directory(api.settings).glob("*")) == []


async def test_an_aborted_upload_is_gone(api: Api) -> None:
    upload = await begin(api.client)
    ok(await send(api.client, upload, 1, b"x"))
    url = f"/v1/datasets/uploads/{upload}"
    assert (await api.client.delete(url)).status_code == 204
    assert left(api) == []
    problem(await api.client.delete(url), 404, "not-found")
    problem(await send(api.client, upload, 1, b"x"), 404, "not-found")


@pytest.mark.parametrize(
    "upload",
    [
        "up_0198a1b2c3d47e5f8a9b0c1d2e3f4a5b",
        "up_" + "0" * 32,
        "up_" + "f" * 32,
        "x",
        "..%2f..",
        "up_%00",
        "ds_" + "1" * 32,
    ],
)
async def test_an_id_that_is_none_is_404(api: Api, upload: str) -> None:
    problem(await api.client.get(f"/v1/datasets/uploads/{upload}"), 404, "not-found")


async def test_what_was_not_completed_in_a_day_is_dropped(api: Api, tmp_path: Path) -> None:
    young = await begin(api.client)
    old = "up_" + f"{int((expires_at(young) - 2 * LIVES).timestamp() * 1000):012x}" + new_id("up")[15:]
    storage = api.service.storage
    folder = next(storage.keys("uploads")).rsplit("/", 2)[0]
    (tmp_path / "about").write_text('{"name": null}')
    for name in ("about.json", f"p00001-1-{digest(b'x')}"):
        storage.put(f"{folder}/{old}/{name}", tmp_path / "about")
    problem(await api.client.get(f"/v1/datasets/uploads/{old}"), 404, "not-found")
    assert sweep.drop_expired_uploads(storage) == 1
    assert {key.split("/")[2] for key in storage.keys("uploads")} == {young}
    assert sweep.drop_expired_uploads(storage) == 0


def test_a_folder_that_is_no_upload_is_left_alone(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")
    (tmp_path / "x").touch()
    storage.put("uploads/lost_found", tmp_path / "x")
    storage.put("uploads/tenant/notes/x", tmp_path / "x")
    assert sweep.drop_expired_uploads(storage) == 0
    assert len(list(storage.keys("uploads"))) == 2


async def test_what_is_completed_twice_is_one_dataset(api: Api) -> None:
    """The first answer may be lost, or so late that nobody waits for it any more."""
    upload = await begin(api.client)
    ok(await send(api.client, upload, 1, ROWS))
    at_once = await asyncio.gather(*(complete(api.client, upload, digest(ROWS)) for _ in range(4)))
    later = await complete(api.client, upload, digest(ROWS))
    made = [answer for answer in (*at_once, later) if answer.status_code == 201]
    assert later in made
    assert {answer.status_code for answer in at_once} <= {201, 409}  # 409: it had gone while the parts were read
    assert len({answer.json()["id"] for answer in made}) == 1
    assert api.execute("SELECT count(*) FROM datasets") == [(1,)]
    (key,) = api.service.storage.keys("datasets")
    assert api.execute("SELECT key FROM datasets") == [(key,)]
    problem(await complete(api.client, upload, digest(b"other")), 404, "not-found")
    assert left(api) == []


async def test_unfinished_uploads_of_a_tenant_are_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed whenever a part arrives; without a bound one tenant keeps the threads busy that others need."""
    monkeypatch.setattr("app.uploads.service.MOST_UNFINISHED", 3)
    begun = [await begin(api.client) for _ in range(3)]
    refused = await api.client.post("/v1/datasets/uploads", json={})
    problem(refused, 403, "storage-quota-exceeded")
    assert (await api.client.delete(f"/v1/datasets/uploads/{begun[0]}")).status_code == 204
    await begin(api.client)
