"""No tenant holds more workers than it may, however many claim at the same moment; others are served past it."""

from __future__ import annotations

import threading

from tests.worker.conftest import TENANT, Workshop
from worker.ledger import attempts as ledger
from worker.ledger import claims


def claim_all(workshop: Workshop, workers: int, *, most: int | None) -> list[claims.Claim | None]:
    """One claim of each of ``workers`` at the same moment."""
    made: list[claims.Claim | None] = []
    together = threading.Barrier(workers)

    def claim() -> None:
        with workshop.connect() as connection:
            together.wait(20)
            made.append(claims.claim(connection, worker="w", lease=30, max_running=most))

    threads = [threading.Thread(target=claim) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return made


def running(workshop: Workshop) -> dict[str, int]:
    rows = workshop.rows("SELECT tenant, count(*) AS n FROM jobs WHERE status = 'running' GROUP BY tenant")
    return {row["tenant"]: row["n"] for row in rows}


def test_simultaneous_claims_keep_to_the_limit_and_others_jobs_pass(workshop: Workshop) -> None:
    for _ in range(8):
        workshop.add_job()
    theirs = workshop.add_job()  # behind all of them in the queue
    with workshop.connect() as connection:
        connection.execute("UPDATE jobs SET tenant = 'other' WHERE id = %s", (theirs,))
    made = claim_all(workshop, 6, most=2)
    assert running(workshop) == {TENANT: 2, "other": 1}
    assert sum(claim is not None for claim in made) == 3
    assert all(row["n"] == 1 for row in workshop.rows("SELECT count(*) AS n FROM attempts GROUP BY job_id"))


def test_a_place_that_is_free_again_is_taken(workshop: Workshop) -> None:
    for _ in range(3):
        workshop.add_job()
    with workshop.connect() as connection:
        first = claims.claim(connection, worker="w", lease=30, max_running=1)
        assert first is not None
        assert claims.claim(connection, worker="w", lease=30, max_running=1) is None
        ledger.hand_back(connection, first.ref, reason="x")
        assert claims.claim(connection, worker="w", lease=30, max_running=1) is not None


def test_a_tenants_own_limit_overrides_the_settings(workshop: Workshop) -> None:
    for _ in range(4):
        workshop.add_job()
    with workshop.connect() as connection:
        connection.execute("INSERT INTO tenant_limits (tenant, max_running_jobs) VALUES (%s, 3)", (TENANT,))
    assert sum(claim is not None for claim in claim_all(workshop, 4, most=1)) == 3


def test_without_a_limit_every_claim_gets_a_job(workshop: Workshop) -> None:
    for _ in range(4):
        workshop.add_job()
    assert all(claim_all(workshop, 4, most=None))
