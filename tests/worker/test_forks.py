"""A job takes over what another one left, where the library finds that it fits, and owes it nothing afterwards."""

from __future__ import annotations

from typing import Any

from tests.services import wait_until
from tests.worker.conftest import Workshop
from worker.keeper import sweep
from worker.ledger import attempts as ledger
from worker.ledger import blocks
from worker.supervisor.relay import block_key
from worker.supervisor.supervisor import work


def fork_of(workshop: Workshop, parent: str, **spec: Any) -> str:
    dataset = workshop.job(parent)["spec"]["calibration"]["dataset"]
    job_id = workshop.add_job(dataset=dataset, **spec)
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET forked_from = %s WHERE id = %s", (parent, job_id))
    return job_id


def cancelled_after_two_blocks(workshop: Workshop) -> str:
    """A job of four blocks; the signs of the computed ones are cleared away."""
    job_id = workshop.add_job()
    workshop.direct("hold-2")
    with workshop.working(workshop.context()):
        workshop.wait_for("at-2")
        wait_until(lambda: len(workshop.rows("SELECT block FROM layers")) == 2, what="two blocks in the ledger")
        with workshop.connect() as connection:
            connection.execute("UPDATE jobs SET status = 'cancelling' WHERE id = %s", (job_id,))
    assert workshop.job(job_id)["status"] == "cancelled"
    for sign in workshop.stage.glob("at-*"):
        sign.unlink()
    return job_id


def test_a_fork_takes_over_the_blocks_of_a_failed_job_and_keeps_files_of_its_own(workshop: Workshop) -> None:
    child = fork_of(workshop, cancelled_after_two_blocks(workshop))
    work(workshop.context())
    assert workshop.job(child)["status"] == "succeeded"
    assert not (workshop.stage / "at-0").exists()  # was not computed again
    assert (workshop.stage / "at-2").exists()
    assert workshop.attempts(child)[0]["resumed_from_block"] == 2
    assert len(workshop.rows("SELECT block FROM layers WHERE job_id = %s", child)) == 4
    keys = [
        file["key"]
        for row in workshop.rows("SELECT files FROM layers WHERE job_id = %s", child)
        for file in row["files"]
    ]
    assert keys
    assert all(key.startswith(f"jobs/{child}/") for key in keys)
    # The same job without a first one ends with the same bytes.
    alone = fork_of(workshop, child)
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET forked_from = NULL WHERE id = %s", (alone,))
    work(workshop.context())
    assert workshop.artifact(child) == workshop.artifact(alone)


def test_jobs_of_a_comparison_are_brought_the_calls_of_the_first_and_nothing_else(workshop: Workshop) -> None:
    first, second = workshop.add_job(), workshop.add_job(method="rtn")
    file = {"bytes": 1, "sha256": "0" * 64}
    names = ("blocks/00000.safetensors", "calls.safetensors", "calls.json")
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET comparison_id = 'cmp_1'")
        ref = workshop.claim().ref
        assert ref.job_id == first
        files = [{"name": name, "key": f"jobs/{first}/blocks/{name[:5]}", **file} for name in names]
        blocks.record_block(
            connection, ref, block=0, blocks=2, seconds=1, report={}, files=files, superseded=[], event={}
        )
        brought = blocks.files_to_take_over(connection, second)
        assert [found["name"] for found in brought] == ["calls.safetensors", "calls.json"]
        connection.execute("UPDATE jobs SET tenant = 'another' WHERE id = %s", (second,))
        assert blocks.files_to_take_over(connection, second) == []
        connection.execute("UPDATE jobs SET tenant = %s, comparison_id = NULL WHERE id = %s", ("tenant-a", second))
        assert blocks.files_to_take_over(connection, second) == []


def test_of_a_job_that_succeeded_the_calls_stay_a_day_longer_than_the_rest(workshop: Workshop) -> None:
    job_id = workshop.add_job()
    work(workshop.context())
    source = workshop.stage / "calls"
    source.write_text("calls")
    for name in ("kept", "orphan"):
        workshop.storage.put(f"jobs/{job_id}/blocks/{name}", source)
    calls = {"name": "calls.json", "bytes": 5, "sha256": "0" * 64, "key": f"jobs/{job_id}/blocks/kept"}
    with workshop.connect() as connection:
        connection.execute("UPDATE layers SET files = files || %s WHERE block = 0", (ledger.Jsonb([calls]),))
        assert sweep.drop_block_files(connection, workshop.storage) == 1
        assert sweep.drop_block_files(connection, workshop.storage) == 0
        assert blocks.block_files(connection, job_id) == [calls]
        assert list(workshop.storage.keys(f"jobs/{job_id}/blocks")) == [calls["key"]]
        connection.execute("UPDATE jobs SET finished_at = clock_timestamp() - interval '25 h'")
        assert sweep.drop_block_files(connection, workshop.storage) == 1
    assert list(workshop.storage.keys(f"jobs/{job_id}/blocks")) == []


def test_a_fork_that_is_begun_again_takes_over_what_its_first_attempt_did_not_come_to(workshop: Workshop) -> None:
    child = fork_of(workshop, cancelled_after_two_blocks(workshop))
    with workshop.connect() as connection:  # a worker that was killed when it had taken over the first of two
        ref = workshop.claim().ref
        files = []
        for file in connection.execute("SELECT files FROM layers WHERE block = 0").fetchall()[0]["files"]:
            copy = workshop.stage / "copy"
            workshop.storage.fetch(file["key"], copy)
            files.append({**file, "key": block_key(child, file["sha256"])})
            workshop.storage.put(files[-1]["key"], copy)
        blocks.record_block(
            connection, ref, block=0, blocks=4, seconds=1, report={}, files=files, superseded=[], event={}
        )
        ledger.hand_back(connection, ref, reason="stopped")
    work(workshop.context())
    assert workshop.job(child)["status"] == "succeeded"
    assert sorted(sign.name for sign in workshop.stage.glob("at-*")) == ["at-2", "at-3"]
    assert workshop.attempts(child)[1]["resumed_from_block"] == 2
