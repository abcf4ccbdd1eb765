"""Downloads: whole, in parts, conditional, all in one; and the report."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest

from core.settings import Settings
from tests.app.conftest import Api, ok, problem, served, started

CONTENT = random.Random(0).randbytes(3_000_001)


async def succeeded(api: Api, tmp_path: Path, **files: bytes) -> str:
    job_id: str = (await api.create_job())["id"]
    api.start(job_id)
    for name, content in files.items():
        api.publish(job_id, name, content, tmp_path)
    api.end(job_id, "succeeded")
    return job_id


@pytest.fixture
async def url(api: Api, tmp_path: Path) -> str:
    job_id = await succeeded(api, tmp_path, **{"model-00001-of-00001.safetensors": CONTENT})
    return f"/v1/jobs/{job_id}/artifacts/model-00001-of-00001.safetensors"


async def test_the_list_says_what_a_download_will_be(api: Api, url: str) -> None:
    (artifact,) = ok(await api.client.get(url.rsplit("/", 1)[0]))["data"]
    assert artifact["url"] == url
    response = await api.client.get(url)
    digest = hashlib.sha256(response.content).digest()
    assert (len(response.content), digest.hex()) == (artifact["bytes"], artifact["sha256"])
    assert response.headers["etag"] == f'"{artifact["sha256"]}"'
    assert response.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert response.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=3000000-", 3_000_000, 3_000_001),
        ("bytes=-5", 2_999_996, 3_000_001),
        ("bytes=-99999999", 0, 3_000_001),
        ("bytes=1048570-2097160", 1_048_570, 2_097_161),
        ("bytes=5-99999999999999999999999", 5, 3_000_001),
    ],
)
async def test_a_range_is_exactly_those_bytes(api: Api, url: str, asked: str, start: int, stop: int) -> None:
    response = await api.client.get(url, headers={"Range": asked})
    assert response.status_code == 206
    assert response.content == CONTENT[start:stop]
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    assert response.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["bytes=3000001-", "bytes=-0", "bytes=9999999-99999999"])
async def test_a_range_outside_the_file_is_416(api: Api, url: str, asked: str) -> None:
    response = await api.client.get(url, headers={"Range": asked})
    problem(response, 416, "range-not-satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=9-3", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6"])
async def test_a_range_that_is_none_gets_the_whole_file(api: Api, url: str, asked: str) -> None:
    response = await api.client.get(url, headers={"Range": asked})
    assert (response.status_code, len(response.content)) == (200, len(CONTENT))


async def test_conditions_are_honoured(api: Api, url: str) -> None:
    tag = (await api.client.head(url)).headers["etag"]
    for listed in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        unchanged = await api.client.get(url, headers={"If-None-Match": listed})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    assert (await api.client.get(url, headers={"If-None-Match": '"other"'})).status_code == 200
    assert (await api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": tag})).status_code == 206
    assert (await api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'})).status_code == 200
    assert (await api.client.get(url, headers={"If-Match": tag})).status_code == 200
    problem(await api.client.get(url, headers={"If-Match": '"other"'}), 412, "precondition-failed")


async def test_head_has_the_headers_and_no_body(api: Api, url: str) -> None:
    async with served(api) as client:
        head, get = await client.head(url), await client.get(url)
    assert head.content == b""
    ignored = {"date", "x-request-id", "ratelimit"}  # counted, and timed
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in get.headers.items() if k not in ignored
    }


async def test_a_broken_download_is_taken_up_again(api: Api, url: str) -> None:
    async with served(api) as client:
        got = b""
        async with client.stream("GET", url) as response:
            tag = response.headers["etag"]
            async for chunk in response.aiter_bytes(100_000):
                got += chunk
                if len(got) >= 500_000:
                    break
        rest = await client.get(url, headers={"Range": f"bytes={len(got)}-", "If-Range": tag})
    assert got + rest.content == CONTENT


@pytest.mark.parametrize("name", ["../../etc/passwd", "%2e%2e%2fsecret", "a%00b", "absent", "%2Fetc%2Fpasswd", ""])
async def test_a_name_selects_a_row_or_nothing(api: Api, url: str, name: str) -> None:
    base = url.rsplit("/", 1)[0]
    async with served(api) as client:
        problem(await client.get(f"{base}/{name}"), 404, "not-found")


async def test_a_lost_object_is_said_before_the_first_byte(api: Api, url: str) -> None:
    api.service.storage.delete(api.execute("SELECT key FROM artifacts")[0][0])
    problem(await api.client.get(url), 500, "object-missing")


async def test_the_archive_is_one_tar_of_everything(api: Api, tmp_path: Path) -> None:
    long_name = "folder/" + "n" * 140 + ".json"
    files = {"config.json": b"{}", "empty": b"", "block": b"b" * 512, "odd": CONTENT[:700_001], long_name: b"[]"}
    job_id = await succeeded(api, tmp_path, **files)
    response = await api.client.get(f"/v1/jobs/{job_id}/archive")
    assert int(response.headers["content-length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        unpacked = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        assert {name: file.read() for name, file in unpacked.items() if file} == {
            f"{job_id}/{name}": content for name, content in files.items()
        }


async def test_a_broken_archive_is_taken_up_again(api: Api, tmp_path: Path) -> None:
    job_id = await succeeded(api, tmp_path, **{"config.json": b"{}", "odd": CONTENT[:700_001], "tail": b"tail"})
    url = f"/v1/jobs/{job_id}/archive"
    async with served(api) as client:
        whole, head = await client.get(url), await client.head(url)
        assert int(head.headers["content-length"]) == len(whole.content)
        assert head.headers["etag"] == whole.headers["etag"]
        for cut in (1, 512, 2_000, 700_000, len(whole.content) - 1):
            condition = {"Range": f"bytes={cut}-", "If-Range": whole.headers["etag"]}
            rest = await client.get(url, headers=condition)
            assert (rest.status_code, rest.content) == (206, whole.content[cut:])
            assert rest.headers["content-range"] == f"bytes {cut}-{len(whole.content) - 1}/{len(whole.content)}"
        assert (await client.get(url, headers={"If-None-Match": whole.headers["etag"]})).status_code == 304
    other = await succeeded(api, tmp_path, **{"config.json": b"[]", "odd": CONTENT[:700_001], "tail": b"tail"})
    assert (await api.client.head(f"/v1/jobs/{other}/archive")).headers["etag"] != whole.headers["etag"]


async def test_nginx_is_told_where_the_file_is_when_it_stands_in_front(settings: Settings, tmp_path: Path) -> None:
    async with started(settings.model_copy(update={"accel_prefix": "/_objects/"})) as api:
        job_id = await succeeded(api, tmp_path, **{"model.safetensors": CONTENT})
        url = f"/v1/jobs/{job_id}/artifacts/model.safetensors"
        response = await api.client.get(url, headers={"Range": "bytes=5-9"})
        key = api.execute("SELECT key FROM artifacts")[0][0]
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["x-accel-redirect"] == f"/_objects/{key}"
        assert response.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
        unchanged = await api.client.get(url, headers={"If-None-Match": response.headers["etag"]})
        assert (unchanged.status_code, "x-accel-redirect" in unchanged.headers) == (304, False)
        assert "x-accel-redirect" not in (await api.client.head(url)).headers


async def test_an_unfinished_job_has_neither_files_nor_report(api: Api) -> None:
    job_id = (await api.create_job())["id"]
    assert ok(await api.client.get(f"/v1/jobs/{job_id}/artifacts")) == {"data": []}
    problem(await api.client.get(f"/v1/jobs/{job_id}/archive"), 409, "job-not-finished")
    problem(await api.client.get(f"/v1/jobs/{job_id}/report"), 409, "report-not-ready")
    ok(await api.client.post(f"/v1/jobs/{job_id}/cancel"))
    problem(await api.client.get(f"/v1/jobs/{job_id}/archive"), 404, "not-found")
    problem(await api.client.get(f"/v1/jobs/{job_id}/report"), 404, "not-found")


@pytest.mark.parametrize(
    ("accept", "query", "expected"),
    [
        (None, "", "application/json"),
        ("*/*", "", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "", "text/html"),
        ("text/html;q=0.2, application/json", "", "application/json"),
        ("application/json;q=0, */*", "", "text/html"),
        ("application/json", "?format=html", "text/html"),
        ("text/html", "?format=json", "application/json"),
    ],
)
async def test_the_report_comes_as_it_is_asked_for(
    api: Api, tmp_path: Path, accept: str | None, query: str, expected: str
) -> None:
    job_id = (await api.create_job())["id"]
    api.start(job_id)
    api.publish(job_id, "quality_report.json", b'{"format": 1}', tmp_path, "application/json")
    api.publish(job_id, "quality_report.html", b"<svg/>", tmp_path, "text/html; charset=utf-8")
    api.end(job_id, "succeeded")
    response = await api.client.get(f"/v1/jobs/{job_id}/report{query}", headers={"Accept": accept} if accept else {})
    assert response.headers["content-type"].startswith(expected)
    assert response.content == (b"<svg/>" if expected == "text/html" else b'{"format": 1}')
    assert "default-src 'none'" in response.headers["content-security-policy"]
    refused = await api.client.get(f"/v1/jobs/{job_id}/report", headers={"Accept": "image/png"})
    problem(refused, 406, "not-acceptable")
