"""The one task: somebody rang. Which job to take is the ledger's to say."""

from __future__ import annotations

from typing import Any

from worker.supervisor.supervisor import pass_on, work


def ring(task: Any, job_id: str) -> int:
    """Work until no job waits that we may have. ``job_id`` may be late or doubled; when it waits all the same, it is
    for another worker to take."""
    attempts = work(task.app.hands)
    if attempts == 0:
        pass_on(task.app.hands, job_id)
    return attempts
