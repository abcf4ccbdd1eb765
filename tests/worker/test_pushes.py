"""Pushes: the files of a finished job at a repository or in a bucket, once, whatever dies in between."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from core.contract.ids import new_id
from core.secret import bucket_row, bucket_seal, hub_seal
from core.settings import Settings
from core.storage import LocalStorage
from tests.hub_server import HubServer, Repository, serving
from tests.services import ObjectStore, wait_until
from tests.worker.conftest import TENANT, Workshop
from worker.ledger import attempts as ledger
from worker.pushes import pushing, queue
from worker.pushes.pushing import push_next, push_regularly

TO_HUB = "hub:team/tiny-w4a6"
CARD, REPORT = b"---\nlicense: mit\n---\n# A card\n", b'{"quality": {}}'
FILES = {
    "config.json": b"{}" + b" " * 300,  # larger than card and report: it comes last all the same
    "README.md": CARD,
    "quality_report.json": REPORT,
    "model-00001-of-00002.safetensors": b"a" * 5000,
    "model-00002-of-00002.safetensors": b"b" * 4000,
}
CANCEL = (
    "UPDATE pushes SET status = 'cancelled', due_at = NULL, finished_at = clock_timestamp(), error = 'cancelled'"
    " RETURNING id"
)
EXPORTED = {"exports/gguf/model.gguf": b"g" * 3000}


@pytest.fixture
def workshop(workshop: Workshop) -> Workshop:
    """With a key for what tenants keep, and neighbours to whom may be pushed."""
    changes = {"hub_key": "k" * 32, "push_allow_private": True}
    workshop.settings = workshop.settings.model_copy(update=changes)
    return workshop


@pytest.fixture
def hub(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on which the tenant's token may write."""
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        seal = hub_seal(workshop.settings)
        assert seal is not None
        sealed = seal.seal(hub.token, row=TENANT)
        with workshop.connect() as connection:
            connection.execute("INSERT INTO hub_tokens (tenant, sealed) VALUES (%s, %s)", (TENANT, sealed))
        yield hub


def finished_job(workshop: Workshop, files: Mapping[str, bytes] = FILES, **summary: Any) -> str:
    """A job that has succeeded with ``files``."""
    workshop.add_job()
    ref = workshop.claim().ref
    artifacts = []
    for number, (name, content) in enumerate(files.items()):
        source = workshop.stage / "artifact"
        source.write_bytes(content)
        key = f"{ref.prefix}/f{number}"
        workshop.storage.put(key, source)
        source.unlink()
        sha = hashlib.sha256(content).hexdigest()
        artifacts.append({"name": name, "key": key, "bytes": len(content), "sha256": sha, "media_type": "text/plain"})
    with workshop.connect() as connection:
        ledger.succeed(connection, ref, summary=summary, artifacts=artifacts)
    return ref.job_id


def add_push(workshop: Workshop, job_id: str, to: str = TO_HUB, **columns: Any) -> str:
    push_id = new_id("push")
    values = {"id": push_id, "tenant": TENANT, "job_id": job_id, "destination": to, "status": "waiting", **columns}
    names = ", ".join(values)
    with workshop.connect() as connection:
        statement = f"INSERT INTO pushes ({names}) VALUES ({', '.join(['%s'] * len(values))})"
        connection.execute(statement.encode(), list(values.values()))
    return push_id


def push(workshop: Workshop) -> dict[str, Any]:
    """Carry the next push, and return its row."""
    with workshop.connect() as connection:
        assert push_next(connection, workshop.storage, workshop.settings, threading.Event())
        return workshop.rows("SELECT * FROM pushes ORDER BY id DESC")[0]


def due_again(workshop: Workshop) -> None:
    workshop.rows("UPDATE pushes SET due_at = clock_timestamp() WHERE due_at IS NOT NULL RETURNING id")


def test_a_repository_gets_the_checkpoint_with_card_and_report_private_and_in_one_commit(
    workshop: Workshop, hub: HubServer
) -> None:
    job_id = finished_job(workshop, {**FILES, **EXPORTED})
    add_push(workshop, job_id)
    row = push(workshop)
    assert (row["status"], row["error"], row["files_done"], row["files_total"]) == ("succeeded", None, 5, 5)
    repository = hub.repositories["team/tiny-w4a6"]
    assert (repository.files, repository.private) == (FILES, True)
    assert repository.commits[1:] == [f"{job_id}, quantized by Quant Experts"]
    assert row["result"] == {"url": f"{hub.endpoint}/team/tiny-w4a6", "commit": repository.sha}
    assert workshop.events(job_id)[-1]["type"] == "job.pushed"
    assert not list(workshop.settings.work_directory.glob("push-*"))
    # The same bytes again are no upload and no commit.
    add_push(workshop, job_id)
    assert push(workshop)["result"]["commit"] == repository.sha
    assert (len(hub.uploads), len(repository.commits)) == (2, 2)
    # Of an export its own files, and the report.
    add_push(workshop, job_id, "hub:team/tiny-gguf", export="gguf", private=False)
    assert push(workshop)["status"] == "succeeded"
    exported = {"model.gguf": EXPORTED["exports/gguf/model.gguf"], "quality_report.json": REPORT}
    assert hub.repositories["team/tiny-gguf"] == Repository(
        private=False, files=exported, large={"model.gguf"}, commits=hub.repositories["team/tiny-gguf"].commits
    )


def test_a_push_that_is_killed_goes_on_elsewhere_and_sends_nothing_twice(
    workshop: Workshop, hub: HubServer, tmp_path: Path
) -> None:
    job_id = finished_job(workshop)
    add_push(workshop, job_id)
    points = tmp_path / "points"
    points.mkdir()
    (points / "kill-push.file_there").touch()
    settings = {
        f"QE_{name.upper()}": str(getattr(workshop.settings, name)) for name in ("home", "database_url", "hub_key")
    }
    settings["QE_STORAGE_URL"] = workshop.settings.resolved_storage_url
    script = (
        "import threading; from core.settings import Settings; from worker.pushes.pushing import push_regularly;"
        "push_regularly(Settings(), threading.Event())"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **settings, "QE_CRASH_POINTS": str(points)}, check=False
    )
    assert killed.returncode == -9
    assert hub.uploads == [hashlib.sha256(b"a" * 5000).hexdigest()]
    assert not hub.repositories["team/tiny-w4a6"].files
    with workshop.connect() as connection:
        assert queue.take_due(connection) is None, "its lease has not ended"
    due_again(workshop)
    row = push(workshop)
    assert (row["status"], row["attempts"], row["step"]) == ("succeeded", 2, 0)
    assert hub.repositories["team/tiny-w4a6"].files == FILES
    assert sorted(hub.uploads) == sorted(hashlib.sha256(FILES[name]).hexdigest() for name in FILES if "model" in name)


@pytest.mark.parametrize(("act", "reason"), [
    ("UPDATE jobs SET deleted_at = clock_timestamp() RETURNING id", "the job was deleted"),
    ("DELETE FROM artifacts RETURNING name", "the files of the job were deleted"),
    (CANCEL, "cancelled"),
    ("DELETE FROM jobs RETURNING id", None),
])  # fmt: skip
def test_what_is_deleted_or_cancelled_while_it_is_pushed_ends_the_push(
    workshop: Workshop, hub: HubServer, monkeypatch: pytest.MonkeyPatch, act: str, reason: str | None
) -> None:
    monkeypatch.setattr(pushing, "BEAT_SECONDS", 0)
    add_push(workshop, finished_job(workshop))
    hub.gate.clear()
    stop = threading.Event()
    pusher = threading.Thread(target=push_regularly, args=(workshop.settings, stop))
    pusher.start()
    try:
        assert hub.arrived.wait(30)
        assert workshop.rows(act)
        ended = "SELECT error FROM pushes WHERE finished_at IS NULL"
        wait_until(lambda: not workshop.rows(ended), what="the end of the push")
    finally:
        stop.set()
        pusher.join(30)
    assert [row["error"] for row in workshop.rows("SELECT error FROM pushes")] == [reason] * (reason is not None)
    assert not hub.repositories["team/tiny-w4a6"].files
    with workshop.connect() as connection:
        assert not push_next(connection, workshop.storage, workshop.settings, stop), "nothing is due any more"


def test_a_keeper_that_stops_gives_its_push_back(workshop: Workshop, hub: HubServer) -> None:
    add_push(workshop, finished_job(workshop))
    hub.gate.clear()
    stop = threading.Event()
    pusher = threading.Thread(target=push_regularly, args=(workshop.settings, stop))
    pusher.start()
    assert hub.arrived.wait(30)
    stop.set()
    pusher.join(30)
    hub.gate.set()
    assert workshop.rows("SELECT status FROM pushes WHERE due_at <= clock_timestamp()") == [{"status": "queued"}]
    assert push(workshop)["status"] == "succeeded"


def test_a_failure_is_told_and_tried_again_until_no_waiting_helps(workshop: Workshop, hub: HubServer) -> None:
    job_id = finished_job(workshop)
    add_push(workshop, job_id)
    hub.answers = [("commit", 412)]
    row = push(workshop)
    assert (row["status"], row["step"]) == ("queued", 1)
    assert row["error"] == "repository 'team/tiny-w4a6': the hub answered 412"
    with workshop.connect() as connection:
        assert queue.take_due(connection) is None
    due_again(workshop)
    hub.answers = [("commit", 403)]
    row = push(workshop)
    assert (row["status"], row["due_at"]) == ("failed", None)
    assert row["error"].endswith("the hub answered 403: may the tenant's token write there?")
    assert workshop.events(job_id)[-1]["type"] == "job.push_failed"
    hub.repositories["team/tiny-w4a6"].private = False
    add_push(workshop, job_id)
    assert "is public: make it private" in push(workshop)["error"]
    assert workshop.job(job_id)["status"] == "succeeded"
    assert not hub.repositories["team/tiny-w4a6"].files


def test_after_the_last_of_the_schedule_it_has_failed(workshop: Workshop) -> None:
    add_push(workshop, finished_job(workshop))
    with workshop.connect() as connection:
        for _ in queue.SCHEDULE:
            due_again(workshop)
            due = queue.take_due(connection)
            assert due is not None
            queue.fail(connection, due, "away", is_final=False)
    assert workshop.rows("SELECT status, error FROM pushes") == [{"status": "failed", "error": "away"}]


def test_the_tenants_own_token_and_no_other_pushes(workshop: Workshop, hub: HubServer) -> None:
    workshop.settings = workshop.settings.model_copy(update={"hub_token": hub.token})
    workshop.rows("DELETE FROM hub_tokens RETURNING tenant")
    add_push(workshop, finished_job(workshop))
    row = push(workshop)
    assert (row["status"], "no hub token" in row["error"]) == ("failed", True)
    assert not hub.repositories


def test_it_waits_for_its_job_and_a_rejected_checkpoint_stays_here(workshop: Workshop, hub: HubServer) -> None:
    job_id = finished_job(workshop, verdict="rejected")
    waiting = add_push(workshop, workshop.add_job(), "hub:team/later")
    add_push(workshop, job_id, if_accepted=True)
    with workshop.connect() as connection:
        assert not push_next(connection, workshop.storage, workshop.settings, threading.Event())
    rows = {row["job_id"]: row for row in workshop.rows("SELECT * FROM pushes")}
    assert rows[job_id]["error"] == "the checkpoint misses its accept_if"
    assert [row["status"] for row in rows.values() if row["id"] == waiting] == ["waiting"]
    for hours, status in ((23, "waiting"), (25, "cancelled")):
        statement = "UPDATE jobs SET status = 'cancelled', finished_at = clock_timestamp() - make_interval(hours => %s)"
        workshop.rows(f"{statement} WHERE status <> 'succeeded' RETURNING id", hours)
        with workshop.connect() as connection:
            queue.take_due(connection)
        assert workshop.rows("SELECT status FROM pushes WHERE id = %s", waiting) == [{"status": status}]
    add_push(workshop, job_id)  # whoever asks afterwards knows
    assert push(workshop)["status"] == "succeeded"


def add_bucket(workshop: Workshop, store: ObjectStore, settings: Settings) -> str:
    bucket = store.bucket().removeprefix("s3://").partition("/")[0]
    sealed = bucket_seal(settings).seal(store.secret_key, row=bucket_row(TENANT, bucket))
    with workshop.connect() as connection:
        connection.execute(
            "INSERT INTO buckets (tenant, name, endpoint_url, path_style, access_key_id, sealed)"
            " VALUES (%s, %s, %s, true, %s, %s)",
            (TENANT, bucket, store.endpoint, store.access_key, sealed),
        )
    return bucket


def test_a_bucket_gets_what_it_lacks_and_config_json_last(
    workshop: Workshop, object_store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = object_store_server
    bucket = add_bucket(workshop, store, workshop.settings)
    job_id = finished_job(workshop)
    brought: list[str] = []
    fetch = LocalStorage.fetch

    def counting(storage: LocalStorage, key: str, target: Path) -> None:
        brought.append(key)
        fetch(storage, key, target)

    monkeypatch.setattr(LocalStorage, "fetch", counting)
    add_push(workshop, job_id, f"s3://{bucket}/models/tiny/")
    row = push(workshop)
    assert (row["status"], row["error"]) == ("succeeded", None)
    assert row["result"] == {"url": f"s3://{bucket}/models/tiny"}
    client = boto3.client(
        "s3", endpoint_url=store.endpoint, region_name="us-east-1",
        aws_access_key_id=store.access_key, aws_secret_access_key=store.secret_key,
    )  # fmt: skip
    listed = client.list_objects_v2(Bucket=bucket)["Contents"]
    content = {each["Key"]: client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read() for each in listed}
    assert content == {f"models/tiny/{name}": data for name, data in FILES.items()}
    assert brought[-1].endswith("/f0"), "config.json"
    client.put_object(Bucket=bucket, Key="models/tiny/config.json", Body=b"??")
    brought.clear()
    add_push(workshop, job_id, f"s3://{bucket}/models/tiny")
    assert push(workshop)["status"] == "succeeded"
    assert [key[-3:] for key in brought] == ["/f0"]
    workshop.rows("UPDATE buckets SET access_key_id = 'another' RETURNING name")
    add_push(workshop, job_id, f"s3://{bucket}/elsewhere")
    row = push(workshop)
    assert (row["status"], row["error"]) == ("failed", f"bucket '{bucket}': the store answered InvalidAccessKeyId")


def test_no_push_reaches_an_address_of_our_own_network(workshop: Workshop, object_store_server: ObjectStore) -> None:
    bucket = add_bucket(workshop, object_store_server, workshop.settings)
    workshop.settings = workshop.settings.model_copy(update={"push_allow_private": False})
    # A name whose owner has it point to us: it passed whatever was checked when the key was set.
    workshop.rows("UPDATE buckets SET endpoint_url = replace(endpoint_url, '127.0.0.1', 'localhost') RETURNING name")
    add_push(workshop, finished_job(workshop), f"s3://{bucket}/a")
    row = push(workshop)
    assert (row["status"], row["error"]) in (
        ("failed", "127.0.0.1 is not a public address"),
        ("failed", "::1 is not a public address"),
    )


def test_a_finished_job_is_a_run_of_mlflow_once(workshop: Workshop, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    workshop.settings = workshop.settings.model_copy(update={"mlflow_tracking_uri": uri})
    job_id = finished_job(workshop, kl=0.0125, verdict="accepted", warnings=2)
    add_push(workshop, job_id, "mlflow")
    row = push(workshop)
    assert (row["status"], row["error"]) == ("succeeded", None)
    add_push(workshop, job_id, "mlflow")  # as after a keeper that died before it could tell
    assert push(workshop)["result"] == row["result"]
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"quant-experts/{TENANT}")
    (run,) = client.search_runs([experiment.experiment_id])
    assert row["result"] == {"url": f"mlflow:{run.info.run_id}"}
    assert (run.info.status, run.info.run_name, run.data.tags["qe.verdict"]) == ("FINISHED", job_id, "accepted")
    assert run.data.metrics == {"kl": 0.0125, "warnings": 2}
    assert (run.data.params["scheme"], run.data.params["model"]) == ("W4A6", "local/tiny")
    downloaded = Path(client.download_artifacts(run.info.run_id, "quality_report.json", str(tmp_path)))
    assert downloaded.read_bytes() == REPORT
