"""The one task: somebody rang. Which job to take is the ledger's to say."""

from __future__ import annotations

from typing import Any

from worker.supervisor import work


def ring(task: Any, job_id: str) -> int:
    """Work until no job waits. ``job_id`` is only for the log: the bell may be late or doubled."""
    return work(task.app.hands)
