"""What a supervisor makes of a job, with the real ledger and a runner that computes hashes."""

from __future__ import annotations

import json
import os
import signal
import threading

import psycopg
import pytest

from core.storage import storage_from_url
from tests.services import ObjectStore, wait_until
from tests.worker.conftest import Workshop, alive
from worker import metrics
from worker.keeper import sweep
from worker.ledger import attempts as ledger
from worker.ledger.connection import Connection
from worker.supervisor.fenced_writer import FencedWriter
from worker.supervisor.lease import hold_lease
from worker.supervisor.supervisor import work


def kinds(workshop: Workshop, job_id: str) -> list[str]:
    return [event["type"] for event in workshop.events(job_id)]


def undisturbed(workshop: Workshop, dataset: str) -> bytes:
    """What the job gives when nothing happens to it."""
    job_id = workshop.add_job(dataset=dataset)
    work(workshop.context("reference"))
    return workshop.artifact(job_id)


def test_a_job_runs_to_success_and_its_artifacts_appear(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    assert work(workshop.context()) == 1
    job = workshop.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert (job["blocks_done"], job["blocks_total"], job["lease_until"], job["phase"]) == (4, 4, None, None)
    assert job["summary"]["kl"] == 0.25
    assert job["summary"]["error"] == {"base": 0.4, "shared": 0.2, "routed": 0.1}
    assert workshop.artifact(job_id).count(b"block") == 4
    phases = [event["data"]["phase"] for event in workshop.events(job_id) if event["type"] == "job.phase"]
    assert phases == ["preparing", "calibrating", "fitting", "packing", "publishing"]
    told = [event["data"] for event in workshop.events(job_id) if "eta_seconds" in event["data"]]
    assert [data.get("phase", data.get("block")) for data in told] == ["fitting", 0, 1, 2, 3, "packing"]
    assert all(20 < data["eta_seconds"] <= 35 and 0.2 < data["fraction"] < 0.5 for data in told)
    assert [event["seq"] for event in workshop.events(job_id)] == list(range(1, len(kinds(workshop, job_id)) + 1))
    assert kinds(workshop, job_id)[-1] == "job.succeeded"
    assert [attempt["outcome"] for attempt in workshop.attempts(job_id)] == ["succeeded"]


def test_a_job_on_an_object_store_resumes_there_and_ends_with_the_same_bytes(
    workshop: Workshop, object_store: ObjectStore
) -> None:
    workshop.storage = storage_from_url(object_store.bucket())
    dataset = workshop.add_dataset()
    expected = undisturbed(workshop, dataset)
    job_id = workshop.add_job(dataset=dataset)
    workshop.direct("crash-2")
    work(workshop.context())
    assert workshop.job(job_id)["status"] == "succeeded"
    assert workshop.artifact(job_id) == expected
    assert [attempt["resumed_from_block"] for attempt in workshop.attempts(job_id)][-1] == 2
    with workshop.connect() as connection:
        assert sweep.drop_block_files(connection, workshop.storage) == 2
    assert list(workshop.storage.keys(f"jobs/{job_id}/blocks")) == []


@pytest.mark.parametrize(("max_kl", "verdict"), [(0.3, "accepted"), (0.2, "rejected")])
def test_a_verdict_is_of_the_job_and_its_event_and_the_artifacts_stay(
    workshop: Workshop, max_kl: float, verdict: str
) -> None:
    job_id = workshop.add_job(accept_if={"max_kl": max_kl})
    work(workshop.context())
    job = workshop.job(job_id)
    assert (job["status"], job["verdict"]) == ("succeeded", verdict)
    assert job["summary"]["verdict"] == verdict
    assert job["summary"]["missed"] == (["KL is 0.25, over the limit"] if verdict == "rejected" else [])
    last = workshop.events(job_id)[-1]
    assert (last["type"], last["data"]["verdict"]) == ("job.succeeded", verdict)
    assert workshop.artifact(job_id).count(b"block") == 4


def test_without_limits_there_is_no_verdict_and_the_summary_has_the_headline_figures(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    work(workshop.context())
    job = workshop.job(job_id)
    assert job["verdict"] is None
    assert workshop.events(job_id)[-1]["data"]["verdict"] is None
    figures = ("baseline_kl", "calibration_verdict", "images_verdict", "image_sensitivity")
    assert [job["summary"][name] for name in figures] == [0.5, "thin", "keeps_looking", 0.9]


def test_blocks_of_several_stacks_are_told_with_their_place(workshop: Workshop) -> None:
    workshop.direct("stacks")
    job_id = workshop.add_job()
    work(workshop.context())
    told = [event["data"] for event in workshop.events(job_id) if event["type"] == "job.block"]
    with workshop.connect() as connection:
        kept = [row["report"] for row in connection.execute("SELECT report FROM layers ORDER BY block")]
    for blocks in (told, kept):
        places = [(block["stack"], block["index"], block["part"]) for block in blocks]
        assert places[:3] == [("vision", 0, None), ("vision", None, "projector"), ("language model", 0, None)]


def test_the_runner_is_told_the_target_and_the_limits(workshop: Workshop) -> None:
    (workshop.stage / "job").touch()
    workshop.add_job(scheme="auto", target={"max_bytes": 10**6}, accept_if={"min_top1_agreement": 0.9})
    work(workshop.context())
    told = json.loads((workshop.stage / "job").read_text())
    assert (told["scheme"], told["target"]) == ("auto", {"max_bytes": 10**6})
    assert told["accept_if"] == {"min_top1_agreement": 0.9}


def test_nothing_is_left_in_the_work_directory(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    work(workshop.context())
    assert list((workshop.settings.work_directory / job_id).iterdir()) == []


def test_it_goes_on_with_the_next_job_without_a_wake_up(workshop: Workshop) -> None:
    jobs = [workshop.add_job() for _ in range(3)]
    assert work(workshop.context()) == 3
    assert {workshop.job(job_id)["status"] for job_id in jobs} == {"succeeded"}


def test_what_libraries_print_does_not_reach_the_channel(workshop: Workshop) -> None:
    workshop.direct("noise")
    job_id = workshop.add_job()
    work(workshop.context())
    assert workshop.job(job_id)["status"] == "succeeded"
    log = workshop.settings.resolved_home / "logs" / f"runner-{job_id}-a1.log"
    assert "talks too much" in log.read_text()


def test_the_runner_knows_no_secret(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QE_DATABASE_URL", "QE_HUB_TOKEN", "QE_HUB_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "do-not-tell")
    workshop.direct("environment")
    workshop.add_job()
    work(workshop.context(hub_token="do-not-tell"))
    environment = json.loads((workshop.stage / "environment").read_text())
    assert "do-not-tell" not in environment.values()
    assert not any(name.startswith("QE_") for name in environment)
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_an_error_of_the_library_fails_the_job_with_its_code(workshop: Workshop) -> None:
    (workshop.stage / "fail").write_text("invalid_calibration calibration row 17: no text")
    job_id = workshop.add_job()
    work(workshop.context())
    job = workshop.job(job_id)
    assert job["status"] == "failed"
    assert job["error"] == {
        "code": "invalid_calibration",
        "message": "calibration row 17: no text",
        "retryable": False,
    }
    assert kinds(workshop, job_id)[-1] == "job.failed"


@pytest.mark.parametrize(
    ("spec", "code"),
    [({"model": "local/absent"}, "model_not_found"), ({"dataset": "ds_absent"}, "dataset_not_found")],
)
def test_something_that_is_not_there_fails_the_job(workshop: Workshop, spec: dict[str, str], code: str) -> None:
    job_id = workshop.add_job(**spec)
    work(workshop.context())
    assert workshop.job(job_id)["error"]["code"] == code


def test_a_damaged_dataset_fails_the_job(workshop: Workshop) -> None:
    dataset = workshop.add_dataset()
    workshop.storage.local_path(f"datasets/{dataset}").write_bytes(b"other")
    job_id = workshop.add_job(dataset=dataset)
    work(workshop.context())
    assert workshop.job(job_id)["error"]["code"] == "dataset_not_found"


def test_a_line_that_is_not_of_the_protocol_fails_the_job_and_spares_the_worker(workshop: Workshop) -> None:
    workshop.direct("garbage")
    job_id = workshop.add_job()
    assert work(workshop.context()) == 3
    assert workshop.job(job_id)["error"]["code"] == "internal"


@pytest.mark.parametrize("block", [0, 1, 3])
def test_a_killed_runner_is_resumed_to_the_same_bytes(workshop: Workshop, block: int) -> None:
    dataset = workshop.add_dataset()
    expected = undisturbed(workshop, dataset)
    workshop.direct(f"crash-{block}")
    job_id = workshop.add_job(dataset=dataset)
    assert work(workshop.context()) == 2
    assert workshop.job(job_id)["status"] == "succeeded"
    assert workshop.artifact(job_id) == expected
    first, second = workshop.attempts(job_id)
    assert (first["outcome"], first["blocks_done"]) == ("runner_died", block)
    assert "SIGKILL" in first["error"]["message"]
    assert (second["outcome"], second["resumed_from_block"], second["blocks_done"]) == ("succeeded", block, 4 - block)
    blocks = [event["data"]["block"] for event in workshop.events(job_id) if event["type"] == "job.block"]
    assert blocks == [0, 1, 2, 3]


def test_three_barren_attempts_fail_the_job(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    threads = threading.Event()

    def crash_again() -> bool:
        workshop.direct("crash-0")
        return threads.is_set()

    context = workshop.context()
    object.__setattr__(context, "draining", crash_again)
    assert work(context) == 3
    job = workshop.job(job_id)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "no_progress"
    assert job["error"]["retryable"] is True


def test_a_cancel_request_kills_the_runner_and_all_it_started(workshop: Workshop) -> None:
    workshop.direct("hold-1", "child")
    job_id = workshop.add_job()
    with workshop.working(workshop.context()):
        workshop.wait_for("at-1")
        runner, child = workshop.runner_pid(), int((workshop.stage / "child").read_text())
        with workshop.connect() as connection:
            connection.execute("UPDATE jobs SET status = 'cancelling' WHERE id = %s", (job_id,))
        wait_until(lambda: workshop.job(job_id)["status"] == "cancelled", seconds=5, what="cancelled")
        assert not alive(runner)
        assert not alive(child)
    assert kinds(workshop, job_id)[-1] == "job.cancelled"
    assert workshop.rows("SELECT * FROM artifacts WHERE job_id = %s", job_id) == []


def test_a_draining_worker_hands_the_job_back_and_another_ends_it_with_the_same_bytes(workshop: Workshop) -> None:
    dataset = workshop.add_dataset()
    expected = undisturbed(workshop, dataset)
    for sign in workshop.stage.glob("at-*"):
        sign.unlink()
    workshop.direct("hold-2")
    job_id = workshop.add_job(dataset=dataset)
    draining = threading.Event()
    with workshop.working(workshop.context("worker-1", draining=draining)):
        workshop.wait_for("at-2")
        draining.set()
        wait_until(lambda: workshop.job(job_id)["status"] == "queued", what="handed back")
    assert workshop.notified == [job_id]
    assert kinds(workshop, job_id)[-1] == "job.requeued"
    assert workshop.job(job_id)["barren_attempts"] == 0
    work(workshop.context("worker-2"))
    assert workshop.artifact(job_id) == expected
    assert [(a["worker"], a["outcome"]) for a in workshop.attempts(job_id)] == [
        ("worker-1", "handed_back"),
        ("worker-2", "succeeded"),
    ]


def test_a_worker_with_little_time_to_drain_gives_the_block_up_and_says_what_is_lost(workshop: Workshop) -> None:
    dataset = workshop.add_dataset()
    expected = undisturbed(workshop, dataset)
    for sign in workshop.stage.glob("at-*"):
        sign.unlink()
    workshop.direct("hold-2")
    workshop.direct("deaf")
    job_id = workshop.add_job(dataset=dataset)
    draining = threading.Event()
    with workshop.working(workshop.context("worker-1", draining=draining, drain_seconds=0.3)):
        workshop.wait_for("at-2")
        draining.set()
        wait_until(lambda: workshop.job(job_id)["status"] == "queued", what="given up")
        assert not alive(workshop.runner_pid())
    (requeued,) = (event for event in workshop.events(job_id) if event["type"] == "job.requeued")
    assert "did not end within 0.3 s" in requeued["data"]["reason"]
    assert workshop.job(job_id)["barren_attempts"] == 0
    work(workshop.context("worker-2"))
    assert workshop.artifact(job_id) == expected


@pytest.mark.parametrize("limit", ["stall_seconds", "step_seconds"])
def test_a_runner_that_gets_nowhere_is_killed_and_the_job_goes_on_elsewhere(workshop: Workshop, limit: str) -> None:
    dataset = workshop.add_dataset()
    expected = undisturbed(workshop, dataset)
    for sign in workshop.stage.glob("at-*"):
        sign.unlink()
    workshop.direct("hold-2")
    job_id = workshop.add_job(dataset=dataset)
    with workshop.working(workshop.context("worker-1", **{limit: 3.0})):
        workshop.wait_for("at-2")
        os.kill(workshop.runner_pid(), signal.SIGSTOP)
        wait_until(lambda: workshop.attempts(job_id)[0]["outcome"] == "runner_died", what="the end of the attempt")
        (workshop.stage / "hold-2").unlink(missing_ok=True)
        wait_until(lambda: workshop.job(job_id)["status"] == "succeeded", what="the next attempt")
    requeued = next(event for event in workshop.events(job_id) if event["type"] == "job.requeued")
    assert "fitting" in requeued["data"]["reason"]
    assert workshop.artifact(job_id) == expected


def test_a_damaged_block_file_is_computed_again(workshop: Workshop) -> None:
    dataset = workshop.add_dataset()
    expected = undisturbed(workshop, dataset)
    workshop.direct("crash-3")
    job_id = workshop.add_job(dataset=dataset)
    context = workshop.context()
    object.__setattr__(context, "draining", lambda: not (workshop.stage / "crash-3").exists())
    work(context)
    files = workshop.rows("SELECT files FROM layers WHERE job_id = %s AND block = 2", job_id)[0]["files"]
    for file in files:
        workshop.storage.local_path(file["key"]).write_bytes(b"?" * file["bytes"])
    work(workshop.context())
    assert workshop.artifact(job_id) == expected
    assert workshop.attempts(job_id)[1]["resumed_from_block"] == 2


def test_superseded_files_leave_storage(workshop: Workshop) -> None:
    workshop.direct("crash-3")
    job_id = workshop.add_job()
    context = workshop.context()
    object.__setattr__(context, "draining", lambda: not (workshop.stage / "crash-3").exists())
    work(context)
    listed = {
        file["key"]: file["name"]
        for row in workshop.rows("SELECT files FROM layers WHERE job_id = %s", job_id)
        for file in row["files"]
    }
    assert set(workshop.storage.keys(f"jobs/{job_id}/blocks")) == set(listed)
    assert sorted(listed.values()) == [
        "blocks/00000.bin", "blocks/00001.bin", "blocks/00002.bin", "chain/00001.bin", "chain/00002.bin",
    ]  # fmt: skip


def held_before(workshop: Workshop, job_id: str, *, seconds: float, waited: float) -> None:
    """An earlier attempt held the job for ``seconds`` and gave it back; since then it has waited."""
    with workshop.connect() as connection:
        connection.execute(
            "UPDATE jobs SET attempt = 1, queued_at = clock_timestamp() - make_interval(secs => %(all)s),"
            " started_at = clock_timestamp() - make_interval(secs => %(all)s) WHERE id = %(id)s",
            {"all": seconds + waited + 1, "id": job_id},
        )
        connection.execute(
            "INSERT INTO attempts (job_id, attempt, worker, outcome, started_at, ended_at) VALUES (%(id)s, 1, 'w',"
            " 'handed_back', clock_timestamp() - make_interval(secs => %(all)s),"
            " clock_timestamp() - make_interval(secs => %(waited)s))",
            {"all": seconds + waited, "waited": waited, "id": job_id},
        )


def test_a_job_that_takes_too_long_is_ended(workshop: Workshop) -> None:
    workshop.direct("hold-1")
    job_id = workshop.add_job(timeout_s=60)
    held_before(workshop, job_id, seconds=58.5, waited=0)
    work(workshop.context())
    assert workshop.job(job_id)["error"]["code"] == "timeout"
    assert not alive(workshop.runner_pid())


def test_what_a_job_waited_between_two_attempts_is_not_time_that_it_took(workshop: Workshop) -> None:
    job_id = workshop.add_job(timeout_s=60)
    held_before(workshop, job_id, seconds=1, waited=7200)
    work(workshop.context())
    assert workshop.job(job_id)["status"] == "succeeded"


def test_a_worker_without_heartbeat_kills_its_runner_before_the_job_is_anothers(workshop: Workshop) -> None:
    workshop.direct("hold-1")
    job_id = workshop.add_job()
    with workshop.working(workshop.context(self_kill=1.0)) as thread:
        workshop.wait_for("at-1")
        runner = workshop.runner_pid()
        database = workshop.rows("SELECT current_database() AS name")[0]["name"]
        with psycopg.connect(workshop.settings.database_url, dbname="postgres", autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (database,),
            )
            wait_until(lambda: not alive(runner), what="the runner's end")
            thread.join(20)
            assert not thread.is_alive()
            connection.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    assert workshop.job(job_id)["status"] == "running"  # until the keeper reaps it


def test_a_reaped_worker_stops_computing_and_writes_nothing_more(workshop: Workshop) -> None:
    workshop.direct("hold-1")
    job_id = workshop.add_job()
    with workshop.working(workshop.context()):
        workshop.wait_for("at-1")
        runner = workshop.runner_pid()
        with workshop.connect() as connection:
            connection.execute("UPDATE jobs SET status = 'queued', lease_until = NULL WHERE id = %s", (job_id,))
            connection.execute("UPDATE jobs SET run_after = '2999-01-01' WHERE id = %s", (job_id,))
            before = kinds(workshop, job_id)
        wait_until(lambda: not alive(runner), seconds=5, what="the runner's end")
    assert workshop.job(job_id)["status"] == "queued"
    assert kinds(workshop, job_id) == before


def test_a_spec_that_is_not_understood_is_tried_as_often_as_other_faults_and_spares_the_worker(
    workshop: Workshop,
) -> None:
    def failed() -> float:
        return metrics.REGISTRY.get_sample_value("qe_worker_attempts_total", {"status": "failed"}) or 0.0

    before = failed()
    newer, next_one = workshop.add_job(), workshop.add_job()
    with workshop.connect() as connection:
        connection.execute("SET session_replication_role = replica")  # the trigger keeps specs as they are
        connection.execute("UPDATE jobs SET spec = spec || '{\"novelty\": 1}' WHERE id = %s", (newer,))
    assert work(workshop.context()) == 4
    assert failed() == before + 1
    assert workshop.job(newer)["error"]["code"] == "invalid_spec"
    assert "novelty" in workshop.job(newer)["error"]["message"]
    assert workshop.job(next_one)["status"] == "succeeded"


def test_an_end_that_the_ledger_cannot_hold_is_told_and_not_computed_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.supervisor.run_attempt.summary_of", lambda _: {"verdict": None, "error": float("inf")})
    job_id = workshop.add_job()
    assert work(workshop.context()) == 1
    job = workshop.job(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "internal")


def test_a_transaction_that_the_server_ended_for_idling_is_begun_again(workshop: Workshop) -> None:
    """As after a machine that stood still for a minute in the middle of one."""
    job_id = workshop.add_job()
    ref = workshop.claim().ref
    tries = []

    def write(connection: Connection, ref: ledger.AttemptRef) -> int:
        tries.append(ref.attempt)
        with connection.transaction():
            ledger.lock(connection, ref)
            if len(tries) == 1:
                connection.execute("SET LOCAL idle_in_transaction_session_timeout = '10ms'")
                wait_until(
                    lambda: not workshop.rows("SELECT FROM pg_stat_activity WHERE state = 'idle in transaction'"),
                    what="the end of the idle session",
                )
            connection.execute("UPDATE jobs SET name = 'written' WHERE id = %s", (ref.job_id,))
        return len(tries)

    with (
        hold_lease(workshop.settings, ref, seconds_left=60) as lease,
        FencedWriter(url(workshop), ref, lease) as writer,
    ):
        assert writer.write(write) == 2
    assert workshop.job(job_id)["name"] == "written"


def test_a_heartbeat_does_not_outlive_what_could_not_begin(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job would be held by nobody, for as long as the process lives."""
    workshop.add_job()
    ref = workshop.claim().ref
    start = threading.Thread.start

    def starting(thread: threading.Thread) -> None:
        if thread.name == "self-kill":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    with pytest.raises(RuntimeError), hold_lease(workshop.settings, ref, seconds_left=60):
        pass
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def url(workshop: Workshop) -> str:
    return workshop.settings.database_url or ""
