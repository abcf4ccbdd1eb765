"""Tenants take turns, by weight; a job goes to a worker that can hold it, the largest device last."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest

from core.ledger.placement import JobNeeds, WorkerResources, misfit
from tests.worker.conftest import Workshop
from worker.keeper.waiting import explain_waiting
from worker.ledger import claims, workers
from worker.ledger.workers import Capacity

GB = 10**9
NUMBER = itertools.count()


def queue(workshop: Workshop, tenant: str, jobs: int = 1, **columns: Any) -> None:
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", %({name})s" for name in columns)
    with workshop.connect() as connection:
        connection.execute(
            f"INSERT INTO jobs (id, tenant, spec, model_id, method, scheme{names}) SELECT 'job_' || lpad(to_hex(n +"
            f" %(first)s), 32, '0'), %(tenant)s, '{{}}', 'a/b', 'qe', 'W4A6'{values}"
            " FROM generate_series(1, %(jobs)s) AS n".encode().decode(),
            {"tenant": tenant, "jobs": jobs, "first": next(NUMBER) * 100_000, **columns},
        )


def take(workshop: Workshop, worker: str = "w", **options: Any) -> claims.Claim | None:
    with workshop.connect() as connection:
        return claims.claim(connection, worker=worker, lease=30, **options)


def tenants(workshop: Workshop, number: int) -> list[str]:
    found = [take(workshop) for _ in range(number)]
    return [claim.tenant for claim in found if claim is not None]


def end(workshop: Workshop) -> None:
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET status = 'failed', lease_until = NULL WHERE lease_until IS NOT NULL")


def live(workshop: Workshop, name: str, device: str = "cpu", memory: int | None = None, **has: Any) -> None:
    with workshop.connect() as connection:
        workers.record_worker(connection, worker=name, host="h", device=device, has=Capacity(memory, has.get("gpu"), 4),
                     free_disk=has.get("disk"))  # fmt: skip


def reason(workshop: Workshop) -> dict[str, str] | None:
    with workshop.connect() as connection:
        explain_waiting(connection, alive=30)
        row = connection.execute("SELECT waiting FROM jobs").fetchone()
    assert row is not None
    found: dict[str, str] | None = row["waiting"]
    return found


def test_behind_fifty_thousand_jobs_of_one_tenant_anothers_first_job_starts_next(workshop: Workshop) -> None:
    queue(workshop, "flood", 50_000)
    with workshop.connect() as connection:
        connection.execute("ANALYZE jobs")
    assert tenants(workshop, 2) == ["flood", "flood"]
    queue(workshop, "small")
    began = time.monotonic()
    assert tenants(workshop, 2) == ["small", "flood"]
    assert time.monotonic() - began < 2.0
    end(workshop)
    queue(workshop, "small", 2)
    assert tenants(workshop, 1) == ["small"]  # nobody holds a worker; it was served longer ago


def test_claims_go_round_the_tenants_and_give_each_as_many_workers_as_the_others(workshop: Workshop) -> None:
    for tenant in ("a", "b", "c"):
        queue(workshop, tenant, 10)
    assert tenants(workshop, 9) == ["a", "b", "c"] * 3


def test_a_tenant_of_twice_the_weight_holds_twice_the_workers(workshop: Workshop) -> None:
    for tenant in ("a", "b"):
        queue(workshop, tenant, 20)
    with workshop.connect() as connection:
        connection.execute("INSERT INTO tenant_limits (tenant, weight) VALUES ('a', 2)")
    assert sorted(tenants(workshop, 9)) == ["a"] * 6 + ["b"] * 3


def test_a_priority_counts_among_a_tenants_own_jobs_alone(workshop: Workshop) -> None:
    queue(workshop, "loud", 2, priority=100)
    queue(workshop, "quiet", 2)
    queue(workshop, "quiet", priority=1)
    claims_made = [take(workshop) for _ in range(4)]
    assert [claim.tenant for claim in claims_made if claim] == ["loud", "quiet", "loud", "quiet"]
    order = workshop.rows("SELECT priority FROM jobs WHERE tenant = 'quiet' AND status = 'running' ORDER BY started_at")
    assert [row["priority"] for row in order] == [1, 0]


def test_workers_that_claim_at_once_give_no_tenant_more_than_it_may_hold(workshop: Workshop) -> None:
    queue(workshop, "a", 20)
    queue(workshop, "b", 20)
    start, got = threading.Barrier(8), []

    def claim(number: int) -> None:
        start.wait()
        for _ in range(3):
            found = take(workshop, f"w{number}", max_running=5)
            got.append(found.tenant if found else None)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name in got if name) == ["a"] * 5 + ["b"] * 5


def test_a_full_tenants_jobs_cost_the_claim_of_others_nothing(workshop: Workshop) -> None:
    queue(workshop, "full", 50_000)
    queue(workshop, "other")
    with workshop.connect() as connection:
        connection.execute("ANALYZE jobs")
        plan = "\n".join(
            row["QUERY PLAN"]
            for row in connection.execute(
                f"EXPLAIN (ANALYZE, BUFFERS OFF, TIMING OFF, SUMMARY OFF) {claims.TURN}".encode(),
                {"most": 5, "skip": []},
            )
        )
    assert plan.count("using ix_jobs_turn on jobs") == 2, plan
    assert take(workshop, max_running=0) is None


@pytest.mark.parametrize(
    ("needs", "resources", "taken"),
    [
        ({"needs_device": 30 * GB}, WorkerResources("NVIDIA A10", 64 * GB, 24 * GB), False),
        ({"needs_device": 30 * GB}, WorkerResources("NVIDIA H200", 64 * GB, 140 * GB), True),
        ({"needs_device": 30 * GB}, WorkerResources("cpu", 64 * GB), True),
        ({"needs_host_cpu": 100 * GB}, WorkerResources("cpu", 64 * GB), False),
        ({"needs_host_cpu": 100 * GB}, WorkerResources("NVIDIA H200", 64 * GB, 140 * GB), True),
        ({"needs_host_cuda": 100 * GB}, WorkerResources("NVIDIA H200", 64 * GB, 140 * GB), False),
        ({"needs_disk": 100 * GB}, WorkerResources("cpu", 64 * GB, free_disk=50 * GB), False),
        ({"needs_disk": 100 * GB}, WorkerResources("cpu", 64 * GB), True),
        ({"device": "gpu"}, WorkerResources("cpu"), False),
        ({"device": "cpu"}, WorkerResources("NVIDIA H200"), False),
        ({"device": "h200"}, WorkerResources("NVIDIA H200"), True),
        ({"device": "H100"}, WorkerResources("NVIDIA H200"), False),
        ({}, WorkerResources("cpu"), True),
    ],
)
def test_a_worker_takes_what_it_can_hold(
    workshop: Workshop, needs: dict[str, Any], resources: WorkerResources, taken: bool
) -> None:
    queue(workshop, "a", **needs)
    names = {"needs_device": "device_memory", "needs_host_cpu": "host_cpu", "needs_host_cuda": "host_cuda"}
    asked = JobNeeds(**{names.get(name, name.removeprefix("needs_")): value for name, value in needs.items()})

    assert (take(workshop, resources=resources) is not None) == taken
    assert (misfit(asked, resources) is None) == taken, "the plan says otherwise"


def test_a_small_job_is_left_to_the_smaller_idle_device_for_a_moment(workshop: Workshop) -> None:
    big = WorkerResources("NVIDIA H200", 500 * GB, 140 * GB)
    live(workshop, "big", "NVIDIA H200", 500 * GB, gpu=140 * GB)
    live(workshop, "small", "NVIDIA A10", 500 * GB, gpu=24 * GB)
    queue(workshop, "a", needs_device=10 * GB)
    assert take(workshop, "big", resources=big) is None
    queue(workshop, "b", needs_device=80 * GB)
    large = take(workshop, "big", resources=big)
    assert large is not None
    assert large.tenant == "b"
    with workshop.connect() as connection:
        connection.execute("UPDATE workers SET job_id = 'job_x' WHERE id = 'small'")
    assert take(workshop, "big", resources=big) is not None
    queue(workshop, "a", needs_device=10 * GB)
    with workshop.connect() as connection:
        connection.execute("UPDATE workers SET job_id = NULL WHERE id = 'small'")
        connection.execute(
            "UPDATE jobs SET queued_at = queued_at - interval '6 s', run_after = run_after - interval '6 s'"
        )
    assert take(workshop, "big", resources=big) is not None


def test_a_job_that_no_worker_can_hold_waits_and_says_why(workshop: Workshop) -> None:
    queue(workshop, "a", needs_device=200 * GB, needs_host_cuda=10 * GB, needs_host_cpu=300 * GB, needs_disk=10 * GB)
    assert reason(workshop) is None
    live(workshop, "w", "NVIDIA H200", 64 * GB, gpu=140 * GB, disk=500 * GB)
    waiting = reason(workshop)
    assert waiting is not None
    assert waiting["code"] == "no_worker_fits"
    assert "186 GB of device memory" in waiting["message"]
    live(workshop, "larger", "cpu", 500 * GB)
    assert reason(workshop) is None


def test_a_class_of_device_that_nobody_has_is_named(workshop: Workshop) -> None:
    queue(workshop, "a", device="H100")
    live(workshop, "w", "NVIDIA A10")
    waiting = reason(workshop)
    assert waiting is not None
    assert waiting["code"] == "no_such_device"
    assert "H100" in waiting["message"]
    assert "NVIDIA A10" in waiting["message"]
    live(workshop, "v", "NVIDIA H100 80GB HBM3")
    assert reason(workshop) is None


def test_what_no_worker_can_hold_is_in_nobodys_way(workshop: Workshop) -> None:
    live(workshop, "w", "cpu", 64 * GB)
    queue(workshop, "a", 3000, needs_host_cpu=100 * GB)
    queue(workshop, "a", needs_host_cpu=10 * GB)
    resources = WorkerResources("cpu", 64 * GB)
    assert take(workshop, resources=resources) is None
    with workshop.connect() as connection:
        assert explain_waiting(connection, alive=30) == 3000
    assert take(workshop, resources=resources) is not None
