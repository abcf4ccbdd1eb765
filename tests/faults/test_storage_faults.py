"""Disks that are full, read-only, failing or slow: one clear error, nothing half-published, and a retry that works."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from core.settings import Settings
from core.storage import LocalStorage
from tests.app.conftest import BOOTSTRAP_KEY, ok, problem, served, started
from tests.faults.test_hub_network import retry
from tests.faults.troubled_storage import DROPPED, FULL, READ_ONLY, TroubledStorage
from tests.services import wait_until
from tests.worker.conftest import Workshop
from worker.keeper import sweep
from worker.machine.health import unfit
from worker.supervisor import retrying_storage as retrying_storage
from worker.supervisor.supervisor import work

BLOCK_FILES = 8
"""What a job of the stand-in stores before its first artifact: two files for each of four blocks."""


@pytest.fixture
def storage(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> TroubledStorage:
    monkeypatch.setattr(retrying_storage, "WAITS", (0.01, 0.01, 0.01, 0.01))
    workshop.storage = TroubledStorage(workshop.storage.root)
    return workshop.storage


def assert_artifacts_are_whole(workshop: Workshop, job_id: str) -> None:
    """I7, and that a job which did not succeed shows nothing."""
    rows = workshop.rows("SELECT name, key, sha256 FROM artifacts WHERE job_id = %s", job_id)
    assert bool(rows) == (workshop.job(job_id)["status"] == "succeeded")
    for row in rows:
        with workshop.storage.open(row["key"]) as reader:
            assert hashlib.file_digest(reader, "sha256").hexdigest() == row["sha256"]


def test_a_store_that_drops_connections_costs_no_job(workshop: Workshop, storage: TroubledStorage) -> None:
    job_id = workshop.add_job()
    storage.fetches.extend([DROPPED, DROPPED])
    storage.puts.extend([0, DROPPED, DROPPED, 0, DROPPED, 0, 0, 0, 0, 0, 0, DROPPED, DROPPED])
    storage.deletes.extend([DROPPED])
    work(workshop.context())
    assert (workshop.job(job_id)["status"], workshop.job(job_id)["attempt"]) == ("succeeded", 1)
    assert not storage.puts
    assert_artifacts_are_whole(workshop, job_id)


@pytest.mark.parametrize(
    ("number", "times", "code", "said"),
    [
        (FULL, 1, "out_of_disk", "no space left to store"),
        (READ_ONLY, 1, "storage_unavailable", "Read-only file system"),
        (DROPPED, 5, "storage_unavailable", "Input/output error"),
    ],
)
@pytest.mark.parametrize("before", [3, BLOCK_FILES, BLOCK_FILES + 1], ids=["block", "first artifact", "last artifact"])
def test_a_store_that_stays_broken_fails_the_job_with_a_code_and_a_retry_ends_it(
    workshop: Workshop, storage: TroubledStorage, number: int, times: int, code: str, said: str, before: int
) -> None:
    dataset = workshop.add_dataset()
    storage.puts.extend([0] * before + [number] * times)
    job_id = workshop.add_job(dataset=dataset)
    work(workshop.context())
    job = workshop.job(job_id)
    assert (job["status"], job["error"]["code"], job["error"]["retryable"]) == ("failed", code, True)
    assert said in job["error"]["message"]
    assert "retry the job" in job["error"]["message"]
    assert_artifacts_are_whole(workshop, job_id)

    retry(workshop, job_id)
    work(workshop.context())
    job = workshop.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert workshop.attempts(job_id)[1]["resumed_from_block"] == min(before // 2, 4)  # nothing done was lost
    assert_artifacts_are_whole(workshop, job_id)
    with workshop.connect() as connection:  # what the failed attempt stored is reclaimed (I10)
        connection.execute("UPDATE attempts SET ended_at = clock_timestamp() - interval '1 h'")
        sweep.drop_dead_artifacts(connection, storage)
    assert list(storage.keys(f"jobs/{job_id}/a1")) == []
    assert_artifacts_are_whole(workshop, job_id)


def test_a_slow_store_costs_no_lease(workshop: Workshop, storage: TroubledStorage) -> None:
    job_id = workshop.add_job()
    storage.slow = threading.Event()
    with workshop.working(workshop.context(lease=30.0, beat=0.2)):
        wait_until(storage.waiting.is_set, what="the upload")
        seen = [workshop.job(job_id)["lease_until"]]
        wait_until(lambda: workshop.job(job_id)["lease_until"] > seen[0], what="a heartbeat while the upload hangs")
        storage.slow.set()
    assert (workshop.job(job_id)["status"], workshop.job(job_id)["attempt"]) == ("succeeded", 1)


def test_a_worker_without_a_place_to_work_leaves_the_jobs_to_others(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    broken = workshop.settings.model_copy(update={"home": workshop.stage / "a-file" / "home"})
    (workshop.stage / "a-file").write_text("where a directory must be")
    assert "cannot be written" in (unfit(broken) or "")
    assert work(replace(workshop.context("broken"), settings=broken)) == 0
    assert "MB free" in (unfit(workshop.settings.model_copy(update={"min_free_bytes": 1 << 60})) or "")
    assert work(workshop.context("full", min_free_bytes=1 << 60)) == 0
    assert (workshop.job(job_id)["status"], workshop.job(job_id)["attempt"]) == ("queued", 0)
    assert work(workshop.context()) == 1
    assert workshop.job(job_id)["status"] == "succeeded"


@contextlib.contextmanager
def quota(bytes_: int) -> Iterator[None]:
    """No file of this process grows beyond ``bytes_``: a full disk that everyone can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory on another file system than the tests', where storing copies instead of linking."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def test_what_does_not_fit_into_the_store_leaves_no_trace(tmp_path: Path, elsewhere: Path) -> None:
    storage = LocalStorage(elsewhere)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(200_000))
    with quota(100_000), pytest.raises(OSError, match="File too large"):
        storage.put("jobs/j/a1/model", source)
    assert list(storage.keys("jobs")) == []
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []
    storage.put("jobs/j/a1/model", source)
    assert storage.size("jobs/j/a1/model") == 200_000


def full_api(database_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", api_key=BOOTSTRAP_KEY, secret="s" * 40, database_url=database_url)


ROW = b'{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}\n'


async def test_an_upload_to_a_full_disk_is_refused_and_nothing_of_it_is_kept(database_url: str, tmp_path: Path) -> None:
    rows = ROW * 20_000
    async with started(full_api(database_url, tmp_path)) as api:
        with quota(1_000_000):
            response = await api.client.post("/v1/datasets", files={"file": ("rows.jsonl", rows)})
        body = problem(response, 507, "storage-full")
        assert body["retryable"] is True
        assert "retry-after" in response.headers
        assert api.execute("SELECT count(*) FROM datasets") == [(0,)]
        assert list((api.settings.resolved_home / "uploads").iterdir()) == []
        assert list(api.service.storage.keys("datasets")) == []
        ok(await api.client.post("/v1/datasets", files={"file": ("rows.jsonl", rows)}), 201)


async def test_an_upload_to_a_store_that_takes_nothing_is_unavailable(database_url: str, tmp_path: Path) -> None:
    async with started(full_api(database_url, tmp_path)) as api:
        blocked = api.settings.resolved_home / "storage" / "datasets"
        blocked.write_text("a file where a folder must be")
        problem(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", ROW)}), 503, "storage-unavailable")
        blocked.unlink()
        ok(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", ROW)}), 201)


async def test_a_download_cut_at_half_is_resumed_to_the_same_bytes(database_url: str, tmp_path: Path) -> None:
    content = os.urandom(6_000_000)
    async with started(full_api(database_url, tmp_path)) as api, served(api) as client:
        job = await api.create_job()
        api.start(job["id"])
        api.end(job["id"], "succeeded")
        digest = api.publish(job["id"], "model.safetensors", content, tmp_path)
        url = f"/v1/jobs/{job['id']}/artifacts/model.safetensors"
        got = bytearray()
        async with client.stream("GET", url) as response:
            tag = response.headers["etag"]
            async for chunk in response.aiter_raw():
                got += chunk
                if len(got) >= len(content) // 2:
                    break  # and the connection is closed in the middle
        assert len(got) < len(content)
        rest = await client.get(url, headers={"Range": f"bytes={len(got)}-", "If-Range": tag})
        assert rest.status_code == 206
        assert rest.headers["content-range"] == f"bytes {len(got)}-{len(content) - 1}/{len(content)}"
        assert hashlib.sha256(bytes(got) + rest.content).hexdigest() == digest == tag.strip('"')


async def test_an_object_that_ends_early_breaks_the_download_off_and_is_no_whole_file(
    database_url: str, tmp_path: Path
) -> None:
    content = os.urandom(6_000_000)
    async with started(full_api(database_url, tmp_path)) as api, served(api) as client:
        job = await api.create_job()
        api.start(job["id"])
        api.end(job["id"], "succeeded")
        api.publish(job["id"], "model.safetensors", content, tmp_path)
        url = f"/v1/jobs/{job['id']}/artifacts/model.safetensors"
        storage = api.service.storage
        assert isinstance(storage, LocalStorage)
        (key,) = storage.keys(f"jobs/{job['id']}/a1")
        async with client.stream("GET", url) as response:
            assert response.status_code == 200
            os.truncate(storage.local_path(key), 1_000_000)
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
        problem(await client.get(url), 500, "object-missing")
