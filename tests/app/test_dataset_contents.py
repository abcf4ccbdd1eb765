"""Looking into a dataset: rows, images and figures are those of the file, wherever it is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.datasets.upload import uploads_directory
from app.parsing import contents
from core.settings import Settings
from tests.app.conftest import Api, ok, problem, started
from tests.app.test_audio_headers import row as heard
from tests.app.test_audio_headers import wav
from tests.app.test_datasets import data_uri, jsonl, parquet, picture, row, upload
from tests.services import ObjectStore

PNG, JPEG = picture(size=(10, 20)), picture("JPEG", size=(300, 100))
IN_TURN = [{"type": "image"}, {"type": "text", "text": "both"}, {"type": "image"}]


async def dataset_of(api: Api, content: bytes) -> str:
    return f"/v1/datasets/{ok(await upload(api, content), 201)['id']}"


async def test_rows_come_with_their_images_apart(api: Api) -> None:
    mixed = {
        "messages": [{"role": "user", "content": IN_TURN}],
        "images": [data_uri(JPEG, "image/jpeg"), data_uri(PNG)],
    }
    url = await dataset_of(api, jsonl(row(data_uri(PNG), "first")) + b"\n\n" + jsonl(mixed, row(text="third")))
    page = ok(await api.client.get(f"{url}/rows"))
    assert [each["number"] for each in page["data"]] == [1, 4, 5]
    assert page["data"][0]["messages"] == [
        {"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": "first"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "first"}]},
    ]
    second = page["data"][1]
    assert [part.get("index") for part in second["messages"][0]["content"]] == [0, None, 1]
    assert [(i["format"], i["width"], i["height"], i["bytes"]) for i in second["images"]] == [
        ("JPEG", 300, 100, len(JPEG)),
        ("PNG", 10, 20, len(PNG)),
    ]
    for image, content, kind in zip(second["images"], (JPEG, PNG), ("image/jpeg", "image/png"), strict=True):
        response = await api.client.get(image["url"])
        assert (response.content, response.headers["content-type"]) == (content, kind)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in response.headers["content-security-policy"]
    assert list(uploads_directory(api.settings).iterdir()) == []


async def test_frames_of_a_video_are_images_of_its_row(api: Api) -> None:
    clip = {"type": "video", "fps": 2, "video": [data_uri(JPEG, "image/jpeg"), data_uri(JPEG, "image/jpeg")]}
    parts = [{"type": "image", "image": data_uri(PNG)}, clip, {"type": "text", "text": "both"}]
    url = await dataset_of(api, jsonl({"messages": [{"role": "user", "content": parts}]}))
    found = ok(await api.client.get(f"{url}/rows"))["data"][0]
    assert found["messages"][0]["content"][1] == {"type": "video", "indices": [1, 2], "fps": 2}
    assert (await api.client.get(found["images"][2]["url"])).content == JPEG
    figures = ok(await api.client.get(f"{url}/statistics"))
    assert (figures["images"], figures["image_formats"]) == (3, {"PNG": 1, "JPEG": 2})
    # As Qwen2-VL: 4 for the picture, and of two frames of a video together at least 128.
    assert figures["tokens"]["image"]["total"] > 4 + 128
    bad = {"type": "video", "fps": -1, "video": [data_uri(PNG)]}
    refused = await upload(api, jsonl({"messages": [{"role": "user", "content": [bad]}]}))
    assert problem(refused, 422, "invalid-dataset")["errors"][0]["pointer"].endswith("/content/0/fps")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
async def test_audio_is_given_as_it_was_uploaded_whole_and_in_ranges(api: Api, kind: str) -> None:
    spoken, stereo = wav(seconds=1.5), wav(seconds=0.25, rate=44_100, channels=2)
    if kind == "jsonl":
        content = jsonl(row(text="no sound"), heard(spoken, language="de"), heard(stereo))
    else:
        rows = [row(text="no sound"), heard({"bytes": spoken, "path": "a.wav"}), heard({"bytes": stereo, "path": None})]
        rows[0]["messages"][1]["content"] = [{"type": "text", "text": "no sound"}]
        for each in rows[1:]:
            each["messages"][1]["content"] = [{"type": "text", "text": "What was said."}]
        content = parquet(rows)
    url = await dataset_of(api, content)
    silent, first, second = ok(await api.client.get(f"{url}/rows"))["data"]
    assert silent["audio"] == []
    language = {"language": "de"} if kind == "jsonl" else {}
    assert first["messages"][0]["content"] == [{"type": "audio", "index": 0, **language}]
    assert first["audio"] == [
        {"format": "WAV", "channels": 1, "rate": 16_000, "seconds": 1.5, "bytes": len(spoken),
         "url": f"{url}/rows/2/audio/0"}
    ]  # fmt: skip
    whole = await api.client.get(first["audio"][0]["url"])
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, spoken, "audio/wav")
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["content-security-policy"] == "default-src 'none'; sandbox"
    sound = second["audio"][0]["url"]
    part = await api.client.get(sound, headers={"Range": "bytes=40-99"})
    assert (part.status_code, part.content) == (206, stereo[40:100])
    assert part.headers["content-range"] == f"bytes 40-99/{len(stereo)}"
    problem(await api.client.get(sound, headers={"Range": "bytes=99999999-"}), 416, "range-not-satisfiable")
    again = await api.client.get(sound, headers={"If-None-Match": part.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for missing in ("rows/1/audio/0", "rows/2/audio/1", "rows/9/audio/0", "rows/2/images/0"):
        problem(await api.client.get(f"{url}/{missing}"), 404, "not-found")
    assert list(uploads_directory(api.settings).iterdir()) == []


async def test_rows_are_paged(api: Api) -> None:
    url = await dataset_of(api, jsonl(*(row(text=f"row {number}") for number in range(1, 8))))
    seen: list[str] = []
    after, more = 0, True
    while more:
        page = ok(await api.client.get(f"{url}/rows", params={"after": after, "limit": 3}))
        seen += [each["messages"][1]["content"][0]["text"] for each in page["data"]]
        after, more = page["next_after"], page["has_more"]
    assert seen == [f"row {number}" for number in range(1, 8)]
    assert ok(await api.client.get(f"{url}/rows?after=7")) == {"data": [], "has_more": False, "next_after": 7}
    problem(await api.client.get(f"{url}/rows?limit=51"), 422, "invalid-request")


@pytest.mark.parametrize("where", ["rows/1/images/1", "rows/2/images/0", "rows/9/images/0"])
async def test_an_image_that_is_not_there_is_404(api: Api, where: str) -> None:
    url = await dataset_of(api, jsonl(row(data_uri(PNG)), row()))
    problem(await api.client.get(f"{url}/{where}"), 404, "not-found")


async def test_figures_are_of_all_rows_and_parquet_on_an_object_store_is_the_same(
    settings: Settings, object_store: ObjectStore
) -> None:
    part = {"type": "image", "text": None}
    rows: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": [part, {"type": "text", "text": "x" * n}]}],
            "images": [{"bytes": PNG}],
        }
        for n in range(1, 40)
    ]
    expected = {
        "rows": 39,
        "rows_text_only": 0,
        "rows_with_images": 39,
        "rows_with_audio": 0,
        "images": 39,
        "image_formats": {"PNG": 39},
        "image_pixels": {"least": 200, "median": 200, "most": 200},
        "image_bytes": {"least": len(PNG), "median": len(PNG), "most": len(PNG)},
        "audio": 0,
        "audio_seconds": None,
        "characters": {"least": 1, "median": 20, "most": 39},
        "roles": {"user": 39},
    }
    async with started(settings.model_copy(update={"storage_url": object_store.bucket()})) as api:
        url = await dataset_of(api, parquet(rows))
        found = ok(await api.client.get(f"{url}/statistics"))
        assert {name: value for name, value in found.items() if name != "tokens"} == expected
        page = ok(await api.client.get(f"{url}/rows?after=20&limit=1"))
        assert (await api.client.get(page["data"][0]["images"][0]["url"])).content == PNG


async def test_figures_without_an_image_say_so(api: Api) -> None:
    url = await dataset_of(api, jsonl(row(text="ab")))
    found = ok(await api.client.get(f"{url}/statistics"))
    assert (found["images"], found["image_pixels"], found["roles"]) == (0, None, {"user": 1, "assistant": 1})
    assert found["characters"] == {"least": 4, "median": 4, "most": 4}


async def test_rows_whose_bytes_are_gone_are_said_to_be(api: Api) -> None:
    url = await dataset_of(api, json.dumps(row()).encode())
    api.service.storage.delete(api.execute("SELECT key FROM datasets")[0][0])
    problem(await api.client.get(f"{url}/rows"), 500, "object-missing")


def test_a_page_of_rows_holds_no_image(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(jsonl(*(row(data_uri(PNG)) for _ in range(3))))
    rows = contents.page(tmp_path / "rows", Settings(), after=0, limit=3)
    assert [image.data for each in rows for image in each.images] == [None] * 3
