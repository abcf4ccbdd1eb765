"""Uploads: what is accepted, what is refused and why, and that a refused one leaves nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from app.datasets.upload import uploads_directory
from tests.app.conftest import Api, job_body, ok, problem, served


def picture(kind: str = "PNG", size: tuple[int, int] = (32, 24), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind, **options)
    return buffer.getvalue()


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def row(image: object = None, text: str = "what is this?", **changes: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        parts.insert(0, {"type": "image", "image": image})
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": text}], **changes}


def jsonl(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


async def upload(api: Api, content: bytes, name: str = "rows.jsonl") -> httpx.Response:
    return await api.client.post("/v1/datasets", files={"file": (name, content)})


def kept(api: Api) -> list[str]:
    """Everything that an upload can leave behind."""
    parts = [path.name for path in uploads_directory(api.settings).glob("*")]
    objects = list(api.service.storage.keys("datasets"))
    return [*parts, *objects, *(str(row) for row in api.execute("SELECT id FROM datasets"))]


async def test_rows_are_kept_as_they_came(api: Api) -> None:
    content = jsonl(row(data_uri(picture())), row(data_uri(picture("JPEG"))), row(data_uri(picture("WEBP"))), row())
    response = await upload(api, content)
    dataset = ok(response, 201)
    assert (dataset["rows"], dataset["images"], dataset["format"], dataset["name"]) == (4, 3, "jsonl", "rows.jsonl")
    assert (dataset["bytes"], dataset["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert ok(await api.client.get(response.headers["location"])) == dataset
    key = api.execute("SELECT key FROM datasets")[0][0]
    with api.service.storage.open(key) as stored:
        assert stored.read() == content
    assert list(uploads_directory(api.settings).iterdir()) == []


@pytest.mark.parametrize("inline", [True, False])
async def test_parquet_rows_carry_their_images_in_a_column(api: Api, inline: bool) -> None:
    part = {"type": "image", "text": None}
    message = {"role": "user", "content": [part, {"type": "text", "text": "what?"}]}
    rows: list[dict[str, Any]] = [
        {"id": n, "messages": [message], "images": [{"bytes": picture(), "path": None}]} for n in range(20)
    ]
    if inline:
        rows = [{"messages": row(data_uri(picture()))["messages"][:1]}]
    dataset = ok(await upload(api, parquet(rows), "rows.parquet"), 201)
    assert (dataset["rows"], dataset["images"], dataset["format"]) == ((1, 1) if inline else (20, 20)) + ("parquet",)


PNG = picture()
BAD_ROWS: dict[str, tuple[object, str, str]] = {
    "not an object": ([1], "/messages", "messages"),
    "no messages": ({"messages": []}, "/messages", "at least one message"),
    "no text": (row(data_uri(PNG), text=" \n"), "/messages", "no text"),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, "/messages/0/role", "'robot'"),
    "content": ({"messages": [{"role": "user", "content": 7}]}, "/messages/0/content", "number"),
    "video": (
        {"messages": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "x"}]}]},
        "/messages/0/content/0/video",
        "a video part without frames",
    ),
    "http": (row("http://example.com/a.png"), "/messages/0/content/0/image", "nothing is fetched"),
    "https url part": (row({"url": "https://example.com/a.png"}), "/messages/0/content/0/image", "nothing is fetched"),
    "path": (row("../../etc/passwd"), "/messages/0/content/0/image", "upload has no files"),
    "absolute path": (row("/etc/passwd"), "/messages/0/content/0/image", "upload has no files"),
    "gif": (row(data_uri(picture("GIF"))), "/messages/0/content/0/image", "GIF"),
    "bmp": (row(data_uri(picture("BMP"))), "/messages/0/content/0/image", "BMP"),
    "text as png": (row(data_uri(b"hello")), "/messages/0/content/0/image", "b'hello'"),
    "cut off": (row(data_uri(PNG[:20])), "/messages/0/content/0/image", "corrupt"),
    "base64": (row("data:image/png;base64,@@@@"), "/messages/0/content/0/image", "base64"),
    "data uri form": (row("data:image/png,abc"), "/messages/0/content/0/image", "form data:image/png;base64"),
    "100 megapixels": (
        row(data_uri(PNG[:16] + (10_000).to_bytes(4) * 2 + PNG[24:])),
        "/messages/0/content/0/image",
        "100 million pixels",
    ),
    "no pixels": (row(data_uri(PNG[:16] + bytes(8) + PNG[24:])), "/messages/0/content/0/image", "0x0"),
    "image too many": (row(images=[data_uri(PNG)]), "/images", "1 images but 0 image parts"),
    "image missing": (
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}]},
        "/messages/0/content/0",
        "without an image",
    ),
    "half a character": (row(text="\ud800"), "/messages/0/content/0/text", "surrogate"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
async def test_a_bad_row_is_named_and_nothing_is_kept(api: Api, name: str) -> None:
    bad, pointer, words = BAD_ROWS[name]
    body = problem(await upload(api, jsonl(row(), row(), bad, row())), 422, "invalid-dataset")
    first = body["errors"][0]
    assert (first["row"], first["pointer"]) == (3, pointer), body["errors"]
    assert words in first["detail"]
    assert first["detail"].startswith("row 3: ")
    assert kept(api) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no rows"),
        (b"\n \n", "no rows"),
        (b"x" * 2_000_000, "row 1: not JSON"),
        (b"\x00\xff" * 1_000_000, "row 1: not UTF-8"),
        (b"[" * 1_000_000, "row 1: the file ends before its list does"),
        (b"[" * 1_000_000 + b"]" * 1_000_000, "nested too deeply"),
        (b'{"messages": ' + b"9" * 10_000 + b"}", "number too long"),
        (jsonl(row())[:-9], "row 1: not JSON"),
        (b"PAR1" + b"\x00" * 100, "not a readable Parquet"),
        (parquet([{"id": 1}]), "no column 'messages'"),
        (parquet([{"messages": row()["messages"][1:]}])[:-40] + b"PAR1", "not a readable Parquet"),
        (picture(), "a single PNG image"),
        (gzip.compress(jsonl(row()), mtime=0)[:-12], "the gzip file is cut off"),
        (gzip.compress((b" " * 69_999 + b"\n") * 1_000, mtime=0), "unpacks to more than"),
    ],
)
async def test_a_file_that_is_no_dataset_is_refused(api: Api, content: bytes, words: str) -> None:
    assert words in problem(await upload(api, content), 422, "invalid-dataset")["detail"]
    assert kept(api) == []


async def test_errors_of_one_kind_are_one_with_a_count(api: Api) -> None:
    paths = [row(f"images/{number}.png") for number in range(100)]
    body = problem(await upload(api, jsonl(row(), *paths, {"messages": 2}, {"messages": 3})), 422, "invalid-dataset")
    assert [(error["row"], error["count"]) for error in body["errors"]] == [(2, 100), (102, 2)]
    assert body["errors"][0]["detail"].endswith("(and 99 more like it)")
    assert body["errors_total"] == 102
    assert body["detail"] == f"{body['errors'][0]['detail']}; and 2 other errors"


async def test_kinds_of_errors_are_bounded_and_all_counted(api: Api) -> None:
    roles = [{"messages": [{"role": f"{'x' * number}", "content": ["y"] * number}]} for number in range(1, 30)]
    different = [{f"key{'x' * number}": 1} for number in range(30)]
    body = problem(await upload(api, jsonl(*roles, *different)), 422, "invalid-dataset")
    assert len(body["errors"]) == 21
    assert body["errors_total"] == 59
    assert body["errors"][-1]["detail"] == f"{body['errors'][-1]['count']} errors of other kinds"


async def test_a_file_over_the_limit_is_refused_and_removed(api: Api) -> None:
    content = b"\n" * (api.settings.max_dataset_bytes + 1)
    problem(await upload(api, content), 413, "body-too-large")
    problem(await upload(api, content + b"\n" * 100_000), 413, "body-too-large")
    assert kept(api) == []


async def test_a_body_of_unsaid_length_is_cut_at_the_limit(api: Api) -> None:
    async def endless() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        for _ in range(100):
            yield b"\n" * 100_000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(await api.client.post("/v1/datasets", content=endless(), headers=headers), 413, "body-too-large")
    assert kept(api) == []


PART = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="r"\r\n\r\n%s\r\n'


@pytest.mark.parametrize(
    ("content_type", "body", "status", "slug"),
    [
        ("application/json", b"{}", 415, "unsupported-media-type"),
        ("multipart/form-data", b"", 415, "unsupported-media-type"),
        ("multipart/form-data; boundary=b", b"", 400, "malformed-request"),
        ("multipart/form-data; boundary=b", b"garbage", 400, "malformed-request"),
        ("multipart/form-data; boundary=b", PART % (b"file", jsonl(row())), 400, "malformed-request"),
        ("multipart/form-data; boundary=b", PART % (b"rows", b"x") + b"--b--", 422, "invalid-request"),
        ("multipart/form-data; boundary=b", PART % (b"name", b"x") + b"--b--", 422, "invalid-request"),
        ("multipart/form-data; boundary=b", PART % (b"file", b"x") * 2 + b"--b--", 422, "invalid-request"),
        ("multipart/form-data; boundary=b", PART % (b"name", b"x" * 9999) + b"--b--", 422, "invalid-request"),
    ],
)
async def test_a_form_that_is_none_is_refused(api: Api, content_type: str, body: bytes, status: int, slug: str) -> None:
    response = await api.client.post("/v1/datasets", content=body, headers={"Content-Type": content_type})
    problem(response, status, slug)
    assert kept(api) == []


async def test_a_client_that_goes_away_leaves_nothing(api: Api) -> None:
    async def broken() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + b"\n" * 100_000
        raise ConnectionResetError

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    async with served(api) as client:
        with pytest.raises(ConnectionResetError):
            await client.post("/v1/datasets", content=broken(), headers=headers)
        ok(await client.get("/healthz"))
    assert kept(api) == []


async def test_the_name_is_the_clients_without_control_characters(api: Api) -> None:
    files = {"file": ("x", jsonl(row()))}
    named = ok(await api.client.post("/v1/datasets", files=files, data={"name": "my\x00 rows\n"}), 201)
    assert named["name"] == "my rows"


async def test_datasets_are_listed_found_by_digest_and_removed(api: Api) -> None:
    first = ok(await upload(api, jsonl(row())), 201)
    second = ok(await upload(api, jsonl(row(), row())), 201)
    assert [entry["id"] for entry in ok(await api.client.get("/v1/datasets"))["data"]] == [second["id"], first["id"]]
    found = ok(await api.client.get("/v1/datasets", params={"sha256": first["sha256"]}))["data"]
    assert [entry["id"] for entry in found] == [first["id"]]
    assert (await api.client.delete(f"/v1/datasets/{first['id']}")).status_code == 204
    problem(await api.client.get(f"/v1/datasets/{first['id']}"), 404, "not-found")
    problem(await api.client.delete(f"/v1/datasets/{first['id']}"), 404, "not-found")
    assert len(list(api.service.storage.keys("datasets"))) == 1


async def test_a_dataset_is_held_by_the_jobs_that_need_it(api: Api) -> None:
    dataset = ok(await upload(api, jsonl(row())), 201)["id"]
    job = ok(await api.client.post("/v1/jobs", json=job_body(calibration={"dataset": dataset})), 201)
    assert job["id"] in problem(await api.client.delete(f"/v1/datasets/{dataset}"), 409, "dataset-in-use")["detail"]
    ok(await api.client.post(f"/v1/jobs/{job['id']}/cancel"))
    assert (await api.client.delete(f"/v1/datasets/{dataset}")).status_code == 204
    problem(await api.client.post(f"/v1/jobs/{job['id']}/retry"), 422, "dataset-not-found")


async def test_what_a_killed_upload_left_is_swept(api: Api) -> None:
    import os

    from app.datasets.upload import sweep_abandoned

    directory = uploads_directory(api.settings)
    directory.mkdir(parents=True, exist_ok=True)
    old, new = directory / "old.part", directory / "new.part"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    sweep_abandoned(api.settings)
    assert list(Path(directory).iterdir()) == [new]
