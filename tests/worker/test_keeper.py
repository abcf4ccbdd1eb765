"""The keeper's duties, each on its own, on a real ledger and real storage."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from core.contract.errors import FailureCode
from core.contract.ids import new_id
from tests.services import wait_until
from tests.worker.conftest import Workshop
from worker import metrics
from worker.keeper import loop as keeper
from worker.keeper import sweep, waiting
from worker.ledger import attempts as ledger
from worker.ledger import blocks, workers
from worker.ledger.connection import Connection
from worker.notify import notify_workers
from worker.supervisor.supervisor import work


def expire(connection: Connection, seconds: float) -> None:
    connection.execute("UPDATE jobs SET lease_until = clock_timestamp() - make_interval(secs => %s)", (seconds,))


def reap(workshop: Workshop) -> dict[str, ledger.JobStatus]:
    with workshop.connect() as connection:
        return keeper.reap(connection, workshop.notified.append, grace=30, budget=3)


def test_a_job_whose_lease_ran_out_waits_again_and_workers_are_notified(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    workshop.claim("silent")
    with workshop.connect() as connection:
        expire(connection, 31)
    assert reap(workshop) == {job_id: "queued"}
    assert workshop.notified == [job_id]
    event = workshop.events(job_id)[-1]
    assert event["type"] == "job.requeued"
    assert event["data"] == {"attempt": 1, "reason": "worker silent was not heard of"}
    assert workshop.attempts(job_id)[0]["outcome"] == "lease_expired"


def test_within_the_grace_nothing_is_reaped(workshop: Workshop) -> None:
    workshop.add_job()
    workshop.claim()
    with workshop.connect() as connection:
        expire(connection, 25)
    assert reap(workshop) == {}


def test_a_job_that_was_to_be_cancelled_is_when_its_worker_is_gone(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    workshop.claim()
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET status = 'cancelling'")
        expire(connection, 31)
    assert reap(workshop) == {job_id: "cancelled"}
    assert workshop.notified == []


def test_the_third_barren_lease_fails_the_job(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    for expected in ("queued", "queued", "failed"):
        workshop.claim()
        with workshop.connect() as connection:
            expire(connection, 31)
        assert reap(workshop) == {job_id: expected}
    assert workshop.job(job_id)["error"]["code"] == "no_progress"


def test_a_job_that_waited_for_longer_than_it_may_fails_and_says_why(workshop: Workshop) -> None:
    never, late, first, again, anew = (workshop.add_job() for _ in range(5))
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET max_wait_s = 60 WHERE id <> %s", (never,))
        long_ago = "clock_timestamp() - interval '61 s'"
        connection.execute(f"UPDATE jobs SET queued_at = {long_ago}, run_after = {long_ago}".encode())
        reason = ledger.Jsonb({"code": "no_such_device", "message": "no worker alive has one"})
        connection.execute("UPDATE jobs SET waiting = %s WHERE id = %s", (reason, first))
        # Each wait counts by itself: of one that was handed back, the one since then.
        connection.execute("UPDATE jobs SET run_after = clock_timestamp() WHERE id = %s", (again,))
        connection.execute("UPDATE jobs SET queued_at = clock_timestamp() WHERE id = %s", (anew,))
        assert sorted(waiting.end_waiting(connection)) == sorted([late, first])
        assert waiting.end_waiting(connection) == []
    assert [workshop.job(job_id)["status"] for job_id in (never, again, anew)] == ["queued"] * 3
    message = "no worker took it within 60 seconds"
    assert workshop.job(late)["error"] == {"code": "no_worker", "message": message, "retryable": True}
    assert workshop.job(first)["error"]["message"] == f"{message}: no worker alive has one"
    assert [event["type"] for event in workshop.events(late)][-1] == "job.failed"


def test_a_waiting_job_is_announced_again_after_a_while_and_not_before(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    with workshop.connect() as connection:
        assert keeper.notify_again(connection, workshop.notified.append, after=60) == []
        connection.execute("UPDATE jobs SET queued_at = clock_timestamp() - interval '61 s'")
        assert keeper.notify_again(connection, workshop.notified.append, after=60) == [job_id]
        assert keeper.notify_again(connection, workshop.notified.append, after=60) == []
    assert workshop.notified == [job_id]


def test_a_job_that_was_handed_back_is_announced_at_once(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET queued_at = clock_timestamp() - interval '1 h', rung_at = queued_at")
        ledger.hand_back(connection, workshop.claim().ref, reason="x")
        assert keeper.notify_again(connection, workshop.notified.append, after=60) == [job_id]


def test_of_two_keepers_one_works(workshop: Workshop) -> None:
    settings = workshop.settings.model_copy(update={"keeper_interval": 0.02, "ring_again": 0})
    notified: dict[str, list[str]] = {"one": [], "two": []}
    stops = {name: threading.Event() for name in notified}
    threads = {
        name: threading.Thread(target=keeper.run_duties, args=(settings, notified[name].append, stops[name]))
        for name in notified
    }
    workshop.add_job()
    threads["one"].start()
    wait_until(lambda: notified["one"], what="the first keeper's wake-up")
    threads["two"].start()
    before = len(notified["one"])
    wait_until(lambda: len(notified["one"]) > before + 5, what="more wake-ups of the first keeper")
    assert notified["two"] == []
    stops["one"].set()
    threads["one"].join(10)
    wait_until(lambda: notified["two"], what="the second keeper's wake-up")
    stops["two"].set()
    threads["two"].join(10)


def test_block_files_of_a_finished_job_are_dropped_and_its_reports_stay(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    work(workshop.context())
    assert list(workshop.storage.keys(f"jobs/{job_id}/blocks"))
    with workshop.connect() as connection:
        assert sweep.drop_block_files(connection, workshop.storage) == 1
        assert sweep.drop_block_files(connection, workshop.storage) == 0
    assert list(workshop.storage.keys(f"jobs/{job_id}/blocks")) == []
    assert len(workshop.rows("SELECT report FROM layers WHERE job_id = %s", job_id)) == 4
    assert workshop.artifact(job_id)


def test_a_failed_job_keeps_its_blocks_for_a_retry_and_loses_them_after_a_day(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    ref = workshop.claim().ref
    source = workshop.stage / "block"
    source.write_text("tensors")
    workshop.storage.put(f"jobs/{job_id}/blocks/00", source)
    file = {"name": "blocks/0", "bytes": 7, "sha256": "00", "key": f"jobs/{job_id}/blocks/00"}
    with workshop.connect() as connection:
        blocks.record_block(
            connection, ref, block=0, blocks=2, seconds=1, report={}, files=[file], superseded=[], event={}
        )
        ledger.fail(connection, ref, code=FailureCode.OUT_OF_MEMORY, message="x")
        assert sweep.drop_block_files(connection, workshop.storage) == 0
        connection.execute("UPDATE jobs SET finished_at = clock_timestamp() - interval '25 h'")
        assert sweep.drop_block_files(connection, workshop.storage) == 1
        assert blocks.block_files(connection, job_id) == []


def test_a_job_that_was_retried_while_the_sweep_waited_for_it_keeps_its_blocks(workshop: Workshop) -> None:
    workshop.add_job()
    ref = workshop.claim().ref
    file = {"name": "blocks/0", "bytes": 7, "sha256": "00", "key": f"jobs/{ref.job_id}/blocks/00"}
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'FOR UPDATE'"
    with workshop.connect() as connection:
        blocks.record_block(
            connection, ref, block=0, blocks=2, seconds=1, report={}, files=[file], superseded=[], event={}
        )
        ledger.fail(connection, ref, code=FailureCode.OUT_OF_MEMORY, message="x")
        connection.execute("UPDATE jobs SET finished_at = clock_timestamp() - interval '25 h'")
    with workshop.connect() as owner, workshop.connect() as sweeper, ThreadPoolExecutor(1) as pool:
        with owner.transaction():  # the retry, and the end that comes of it
            owner.execute("UPDATE jobs SET finished_at = clock_timestamp()")
            swept = pool.submit(sweep.drop_block_files, sweeper, workshop.storage)
            wait_until(lambda: workshop.rows(waiting), what="the sweep at the lock")
        assert swept.result(10) == 0
        assert blocks.block_files(owner, ref.job_id)


@pytest.mark.parametrize(("ended", "dropped"), [("11 min", 1), ("1 min", 0)])
def test_work_directories_and_objects_of_dead_attempts_are_dropped(
    workshop: Workshop, ended: str, dropped: int
) -> None:
    job_id = workshop.add_job()
    directory = workshop.settings.work_directory / job_id / "a1"
    directory.mkdir(parents=True)
    (directory / "job.json").write_text("{}")
    workshop.storage.put(f"jobs/{job_id}/a1/model.safetensors", directory / "job.json")
    ref = workshop.claim().ref
    with workshop.connect() as connection:
        assert sweep.drop_work_directories(connection, workshop.settings.work_directory) == 0
        assert sweep.drop_dead_artifacts(connection, workshop.storage) == 0
        ledger.hand_back(connection, ref, reason="x")
        connection.execute(f"UPDATE attempts SET ended_at = clock_timestamp() - interval '{ended}'")
        assert sweep.drop_work_directories(connection, workshop.settings.work_directory) == dropped
        assert sweep.drop_dead_artifacts(connection, workshop.storage) == dropped
    assert directory.exists() == (not dropped)
    assert bool(list(workshop.storage.keys(f"jobs/{job_id}/a1"))) == (not dropped)


def test_uploads_that_no_dataset_names_are_dropped_after_a_day(workshop: Workshop) -> None:
    source = workshop.stage / "rows.jsonl"
    source.write_text("{}")
    lost, kept = new_id("ds"), new_id("ds")
    for name in (lost, kept):
        workshop.storage.put(f"datasets/{name}/rows.jsonl", source)
    with workshop.connect() as connection:
        connection.execute(
            "INSERT INTO datasets (id, tenant, format, status, bytes, sha256, key, rows, images)"
            " VALUES (%s, 't', 'jsonl', 'ready', 2, '00', 'k', 1, 0)",
            (kept,),
        )
        assert sweep.drop_unnamed_uploads(connection, workshop.storage) == 0
        assert sweep.drop_unnamed_uploads(connection, workshop.storage, hours=0) == 1
    assert list(workshop.storage.keys("datasets")) == [f"datasets/{kept}/rows.jsonl"]


def test_what_a_killed_process_was_about_to_store_is_dropped_after_a_day(workshop: Workshop, tmp_path: Path) -> None:
    source = tmp_path / "block"
    source.write_bytes(b"half")
    workshop.storage.put("jobs/job_a/blocks/whole", source)
    # What `put` has made when it is killed: a hard link, which looks as old as its source.
    os.utime(source, (0, 0))
    os.link(source, workshop.storage.local_path("jobs/job_a/blocks/whole").with_name(".0.part"))
    assert sweep.drop_unfinished_puts(workshop.storage) == 0
    assert sweep.drop_unfinished_puts(workshop.storage, hours=0) == 1
    assert list(workshop.storage.keys("jobs")) == ["jobs/job_a/blocks/whole"]


def test_published_artifacts_are_never_swept(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    work(workshop.context())
    with workshop.connect() as connection:
        connection.execute("UPDATE attempts SET ended_at = clock_timestamp() - interval '2 h'")
        keeper.sweep_away(connection, workshop.storage, workshop.settings)
    assert workshop.artifact(job_id)


def test_answers_to_idempotent_requests_are_forgotten_after_a_day(workshop: Workshop) -> None:
    with workshop.connect() as connection:
        for key, age in (("old", "25 h"), ("new", "23 h")):
            connection.execute(
                "INSERT INTO idempotency (tenant, key, request_digest, created_at)"
                f" VALUES ('t', '{key}', '00', clock_timestamp() - interval '{age}')"
            )
        assert sweep.forget_idempotency(connection) == 1
    assert workshop.rows("SELECT key FROM idempotency") == [{"key": "new"}]


def test_workers_that_were_not_seen_for_an_hour_are_forgotten(workshop: Workshop) -> None:
    with workshop.connect() as connection:
        for name in ("gone", "here"):
            workers.record_worker(connection, worker=name, host="h", device="cpu")
        connection.execute("UPDATE workers SET seen_at = clock_timestamp() - interval '61 min' WHERE id = 'gone'")
        assert sweep.forget_workers(connection) == 1
        workers.record_worker(connection, worker="here", host="h", device="cpu")
    assert workshop.rows("SELECT id FROM workers") == [{"id": "here"}]


def test_old_logs_of_runners_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "runner-job_1-a1.log").write_text("x")
    (tmp_path / "api.log").write_text("x")
    assert sweep.drop_logs(tmp_path) == 0
    assert sweep.drop_logs(tmp_path, days=-1) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["api.log"]


def test_a_broker_that_hangs_is_asked_once_in_a_round(workshop: Workshop) -> None:
    """Each wake-up costs seconds then, and meanwhile nobody would be reaped."""
    jobs = {workshop.add_job() for _ in range(5)}
    with socket.socket() as listener, workshop.connect() as connection:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)  # the kernel accepts; nobody ever reads
        hung = workshop.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{listener.getsockname()[1]}/0"})
        lost = metrics.NOTIFICATIONS_LOST._value.get()
        connection.execute("UPDATE jobs SET queued_at = clock_timestamp() - interval '61 s'")
        assert set(keeper.notify_again(connection, partial(notify_workers, hung), after=60)) == jobs
    assert metrics.NOTIFICATIONS_LOST._value.get() == lost + 1


def test_a_sweep_that_takes_long_delays_no_reaping(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store that answers slowly takes minutes for a listing."""
    sweeping, enough = threading.Event(), threading.Event()

    def sweep_away(*_: object) -> None:
        sweeping.set()
        enough.wait(60)

    monkeypatch.setattr(keeper, "sweep_away", sweep_away)
    stop = threading.Event()
    settings = workshop.settings.model_copy(update={"keeper_interval": 0.05, "grace": 0.0})
    thread = threading.Thread(target=keeper.run_duties, args=(settings, workshop.notified.append, stop))
    thread.start()
    try:
        assert sweeping.wait(20)
        job_id = workshop.add_job()
        workshop.claim()
        with workshop.connect() as connection:
            expire(connection, 31)
        wait_until(lambda: workshop.job(job_id)["status"] == "queued", what="the reaping")
    finally:
        enough.set()
        stop.set()
        thread.join(20)


def test_what_cannot_be_swept_leaves_the_rest_to_be(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sweep, "drop_expired_uploads", refuse)
    logs = workshop.settings.resolved_home / "logs"
    logs.mkdir(parents=True)
    old = logs / "runner-job_x-a1.log"
    old.touch()
    os.utime(old, (0, 0))
    with workshop.connect() as connection:
        keeper.sweep_away(connection, workshop.storage, workshop.settings)
    assert not old.exists()


def test_the_directory_of_a_job_that_is_just_begun_stays(workshop: Workshop) -> None:
    """Its attempt's is made a moment later, and the attempt would fail."""
    fresh = workshop.settings.work_directory / "job_x"
    fresh.mkdir(parents=True)
    with workshop.connect() as connection:
        sweep.drop_work_directories(connection, workshop.settings.work_directory)
        assert fresh.exists()
        os.utime(fresh, (0, 0))
        sweep.drop_work_directories(connection, workshop.settings.work_directory)
    assert not fresh.exists()


def test_block_files_are_found_without_a_walk_over_all_jobs(workshop: Workshop) -> None:
    work_done = workshop.add_job()
    work(workshop.context())
    with workshop.connect() as connection:
        connection.execute(
            "INSERT INTO layers (job_id, block, attempt, seconds, report, files)"
            " SELECT %s, block, 1, 1, '{}', '[]' FROM generate_series(100, 3000) AS block",
            (work_done,),
        )
        connection.execute("ANALYZE layers")
        connection.execute("SELECT pg_stat_reset()")
        assert sweep.drop_block_files(connection, workshop.storage) == 1
        connection.execute("SELECT pg_stat_force_next_flush()")
        scans = connection.execute("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'ix_layers_files'")
        assert (scans.fetchone() or {})["idx_scan"] > 0
