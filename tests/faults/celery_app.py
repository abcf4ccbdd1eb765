"""The Celery app of the workers of a cluster under faults.

``FAULTS_RUNNER``   ``standin`` or ``real``
``FAULTS_STAGE``    directory that directs the stand-in
``FAULTS_WITHOUT``  negative controls, comma-separated: ``fence`` and ``self-kill``. They exist in this file only, which
                    no package contains: a service that is installed has no setting, flag or code to turn either off.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import tests.worker
from app.contract.states import JobStatus
from worker import ledger
from worker.celery_app import create_celery
from worker.lease import Lease
from worker.supervisor import RUNNER

STANDIN = (sys.executable, str(Path(tests.worker.__path__[0]) / "standin.py"))


def drop_the_fence() -> None:
    """A job's row is locked and answered whoever holds it: what a ledger without fencing tokens does."""

    def lock(connection: ledger.Connection, hold: ledger.Hold, *_: JobStatus) -> Any:
        return connection.execute(
            "SELECT status, barren_attempts FROM jobs WHERE id = %s FOR UPDATE", (hold.job_id,)
        ).fetchone()

    def beat(connection: ledger.Connection, hold: ledger.Hold, *, lease: float) -> JobStatus:
        connection.execute(
            "UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => %s)"
            " WHERE id = %s AND status IN ('running', 'cancelling')",
            (lease, hold.job_id),
        )
        return JobStatus.RUNNING

    ledger.lock = lock
    ledger.beat = beat
    ledger.peek = lambda connection, hold: JobStatus.RUNNING


def drop_the_self_kill() -> None:
    """A worker without heartbeats goes on computing."""
    Lease.watch = lambda self: None  # type: ignore[method-assign]


WITHOUT = {"fence": drop_the_fence, "self-kill": drop_the_self_kill}
for _name in filter(None, os.environ.get("FAULTS_WITHOUT", "").split(",")):
    WITHOUT[_name]()
app = create_celery(runner=RUNNER if os.environ["FAULTS_RUNNER"] == "real" else (*STANDIN, os.environ["FAULTS_STAGE"]))
