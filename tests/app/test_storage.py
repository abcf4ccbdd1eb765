"""What every store promises, held against each of them; then what is the object store's own."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import httpx
import pytest

from core.settings import Settings
from core.storage import LocalStorage, ObjectMissing, Presentation, Storage, StorageUnavailable, storage_from_url
from core.storage.s3 import PART, S3Storage
from tests.app.conftest import Api, ok, problem, served, started
from tests.services import ObjectStore

LARGE = random.Random(2).randbytes(PART + 1_234_567)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"content")
    return path


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return storage_from_url((tmp_path / "storage").as_uri())
    store: ObjectStore = request.getfixturevalue("object_store")
    return storage_from_url(store.bucket())


class TestEveryStore:
    def test_what_is_put_is_read_whole_and_from_any_byte(self, storage: Storage, file: Path) -> None:
        storage.put("a/b/c.bin", file)
        assert storage.size("a/b/c.bin") == 7
        for start in (0, 1, 6, 7):
            with storage.open("a/b/c.bin", start) as reader:
                assert reader.read(3) + reader.read() == b"content"[start:]

    def test_an_object_is_fetched_to_a_file_and_what_was_there_is_replaced(
        self, storage: Storage, file: Path, tmp_path: Path
    ) -> None:
        storage.put("a", file)
        target, other = tmp_path / "target", tmp_path / "other"
        target.write_bytes(b"old and longer than the new")
        other.hardlink_to(target)
        storage.fetch("a", target)
        assert target.read_bytes() == b"content"
        assert other.read_bytes() == b"old and longer than the new"

    def test_putting_again_replaces_and_the_source_may_change_after(self, storage: Storage, file: Path) -> None:
        storage.put("a", file)
        file.unlink()
        file.write_bytes(b"second")
        storage.put("a", file)
        file.unlink()
        with storage.open("a") as reader:
            assert reader.read() == b"second"

    def test_a_large_object_arrives_as_it_was(self, storage: Storage, file: Path, tmp_path: Path) -> None:
        file.write_bytes(LARGE)
        storage.put("large", file)
        assert storage.size("large") == len(LARGE)
        storage.fetch("large", tmp_path / "target")
        with (tmp_path / "target").open("rb") as reader:
            assert hashlib.file_digest(reader, "sha256").digest() == hashlib.sha256(LARGE).digest()
        with storage.open("large", PART - 1) as reader:
            assert reader.read(3) == LARGE[PART - 1 : PART + 2]

    def test_an_empty_object_is_an_object(self, storage: Storage, file: Path, tmp_path: Path) -> None:
        file.write_bytes(b"")
        storage.put("empty", file)
        assert storage.size("empty") == 0
        with storage.open("empty") as reader:
            assert reader.read() == b""
        storage.fetch("empty", tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == b""

    def test_what_is_not_there_is_missing_and_deleting_it_is_no_error(self, storage: Storage, tmp_path: Path) -> None:
        with pytest.raises(ObjectMissing):
            storage.size("a/b")
        with pytest.raises(ObjectMissing):
            storage.open("a/b", 5)
        with pytest.raises(ObjectMissing):
            storage.fetch("a/b", tmp_path / "target")
        storage.delete("a/b")
        storage.delete_under("a")
        assert list(storage.keys("a")) == []

    def test_a_folder_is_listed_and_removed_without_its_neighbours(self, storage: Storage, file: Path) -> None:
        for key in ("jobs/1/a", "jobs/1/b/c", "jobs/11/a", "jobs/2/a"):
            storage.put(key, file)
        assert sorted(storage.keys("jobs/1")) == ["jobs/1/a", "jobs/1/b/c"]
        storage.delete_under("jobs/1")
        storage.delete("jobs/2/a")
        assert sorted(storage.keys("jobs")) == ["jobs/11/a"]
        assert list(storage.keys("")) == ["jobs/11/a"]

    @pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "a/.b", "a b", "ä", "a" * 200])
    def test_a_key_that_could_be_a_path_is_refused(self, storage: Storage, file: Path, key: str) -> None:
        with pytest.raises(ValueError, match="storage key"):
            storage.put(key, file)

    def test_a_source_that_is_gone_is_the_callers_own_fault(self, storage: Storage, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            storage.put("a", tmp_path / "gone")
        with pytest.raises(ObjectMissing):
            storage.size("a")


def test_a_link_opens_one_object_for_anyone_and_no_other(object_store: ObjectStore, file: Path) -> None:
    storage = storage_from_url(object_store.bucket())
    for key in ("mine", "other"):
        storage.put(key, file)
    link = storage.link("mine", Presentation("text/plain", 'attachment; filename="x"'))
    assert link is not None
    assert httpx.get(link, headers={"Range": "bytes=1-3"}).content == b"ont"
    assert httpx.get(link.replace("/mine", "/other")).status_code == 403
    assert httpx.get(link.split("?")[0]).status_code in (400, 401, 403)


def test_a_link_names_the_store_as_clients_know_it(object_store: ObjectStore) -> None:
    url = f"{object_store.bucket()}&public_endpoint_url=https://files.example.org&addressing_style=path"
    link = storage_from_url(url).link("a", Presentation("text/plain", "inline"))
    assert link is not None
    assert link.startswith("https://files.example.org/qe-")


def test_wrong_credentials_and_a_store_that_is_away_are_told_apart(
    object_store: ObjectStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = object_store.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageUnavailable) as refused:
        storage_from_url(url).put("a", file)
    assert "wrong" not in str(refused.value)
    away = storage_from_url("s3://bucket?endpoint_url=http://127.0.0.1:9")
    with pytest.raises(StorageUnavailable) as absent:
        away.size("a")
    assert refused.value.errno != absent.value.errno


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3:///prefix", "s3://bucket/prefix"),
        ("s3://key:secret@bucket/prefix", "without credentials"),
        ("s3://bucket/../x", "segment"),
        ("s3://bucket/x?endpoint=http://a", "unknown option endpoint"),
        ("gs://bucket", "file:///absolute/directory or s3://"),
        ("file://host/x", "file:///absolute/directory"),
    ],
)
def test_a_url_that_is_none_says_what_is_wrong(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        storage_from_url(url)
    assert "secret" not in str(refused.value)


async def finished(api: Api, tmp_path: Path, **files: bytes) -> str:
    job_id: str = (await api.create_job(alias="team/on-s3"))["id"]
    api.start(job_id)
    for name, content in files.items():
        api.publish(job_id, name, content, tmp_path)
    api.end(job_id, "succeeded")
    return job_id


async def test_the_api_serves_from_the_object_store(
    settings: Settings, object_store: ObjectStore, tmp_path: Path
) -> None:
    async with started(settings.model_copy(update={"storage_url": object_store.bucket()})) as api:
        assert isinstance(api.service.storage, S3Storage)
        job_id = await finished(api, tmp_path, **{"config.json": b"{}", "model.safetensors": LARGE})
        url = f"/v1/jobs/{job_id}/artifacts/model.safetensors"
        async with served(api) as client:
            assert ok(await client.get("/readyz"))["checks"]["storage"] == "ok"
            assert hashlib.sha256((await client.get(url)).content).digest() == hashlib.sha256(LARGE).digest()
            part = await client.get(url, headers={"Range": "bytes=17000000-17000009"})
            assert (part.status_code, part.content) == (206, LARGE[17_000_000:17_000_010])
            archive = f"/v1/jobs/{job_id}/archive"
            whole = (await client.get(archive)).content
            assert (await client.get(archive, headers={"Range": "bytes=5000-"})).content == whole[5000:]


async def test_clients_are_sent_to_the_object_store_when_it_is_wanted(
    settings: Settings, object_store: ObjectStore, tmp_path: Path
) -> None:
    changes = {"storage_url": object_store.bucket(), "redirect_downloads": True}
    async with started(settings.model_copy(update=changes)) as api:
        job_id = await finished(api, tmp_path, **{"config.json": b'{"a": 1}', "quality_report.json": b"{}"})
        for url in (f"/v1/jobs/{job_id}/artifacts/config.json", "/hub/team/on-s3/resolve/main/config.json"):
            response = await api.client.get(url)
            assert (response.status_code, response.content) == (302, b"")
            assert response.headers["location"].startswith(object_store.endpoint)
            assert response.headers["cache-control"] == "no-store"
            assert httpx.get(response.headers["location"]).content == b'{"a": 1}'
            head = await api.client.head(url)
            assert (head.status_code, head.headers["content-length"]) == (200, "8")
        assert (await api.client.get(f"/v1/jobs/{job_id}/report?format=json")).status_code == 200
        api.execute("UPDATE artifacts SET bytes = 9 WHERE name = 'config.json'")
        problem(await api.client.get(f"/v1/jobs/{job_id}/artifacts/config.json"), 500, "object-missing")


def test_a_directory_is_not_linked_to(tmp_path: Path) -> None:
    assert LocalStorage(tmp_path).link("a", Presentation("text/plain", "inline")) is None


def test_a_listing_goes_on_when_a_folder_is_removed_under_it(tmp_path: Path, file: Path) -> None:
    """Uploads are completed while the keeper lists them, and counted while others are aborted."""
    storage = LocalStorage(tmp_path / "storage")
    for name in ("one", "two", "three"):
        storage.put(f"uploads/{name}/part", file)
    keys = storage.keys("uploads")
    first = next(keys)
    for name in ("one", "two", "three"):
        if name not in first:
            storage.delete_under(f"uploads/{name}")
    assert [first, *keys] == [first]


def test_an_object_that_goes_while_it_is_fetched_is_missing(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is forked while it runs removes what it needs no more, and the keeper does."""
    storage = LocalStorage(tmp_path / "storage")
    storage.put("a", file)

    def link(source: Path, target: Path) -> None:
        storage.delete("a")
        raise FileNotFoundError(2, "No such file or directory", str(source))

    monkeypatch.setattr("os.link", link)
    with pytest.raises(ObjectMissing):
        storage.fetch("a", tmp_path / "target")
