"""One attempt at a job, as the steps of the supervisor pass it on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.contract.spec import JobSpec
from core.settings import Settings
from core.tracing import Span
from worker.ledger.attempts import AttemptRef
from worker.ledger.claims import Claim
from worker.machine.context import WorkerContext
from worker.supervisor.fenced_writer import FencedWriter
from worker.supervisor.lease import Lease, hold_lease
from worker.supervisor.retrying_storage import RetryingStorage


@dataclass(frozen=True)
class Attempt:
    context: WorkerContext
    claim: Claim
    spec: JobSpec
    lease: Lease
    writer: FencedWriter
    storage: RetryingStorage
    span: Span

    @property
    def ref(self) -> AttemptRef:
        return self.claim.ref

    @property
    def settings(self) -> Settings:
        return self.context.settings

    @property
    def directory(self) -> Path:
        """The attempt's scratch directory; deleted at its end."""
        return directory_of(self.settings, self.ref)

    @property
    def work(self) -> Path:
        """What a later attempt resumes from."""
        return self.directory / "work"

    @property
    def log(self) -> Path:
        """What the runner and downloads print; it outlives the attempt."""
        return self.settings.resolved_home / "logs" / f"runner-{self.ref.job_id}-a{self.ref.attempt}.log"


@contextlib.contextmanager
def open_attempt(context: WorkerContext, claim: Claim, spec: JobSpec, span: Span) -> Iterator[Attempt]:
    """Hold the lease and a fenced writer while the block runs. Raises Lost when the lease is gone."""
    seconds_left = spec.timeout_s - claim.elapsed
    with hold_writer(context.settings, claim.ref, seconds_left=seconds_left) as (lease, writer):
        storage = RetryingStorage(context.storage, partial(_wait, lease))
        yield Attempt(context, claim, spec, lease, writer, storage, span)


@contextlib.contextmanager
def hold_writer(settings: Settings, ref: AttemptRef, *, seconds_left: float) -> Iterator[tuple[Lease, FencedWriter]]:
    with (
        hold_lease(settings, ref, seconds_left=seconds_left) as lease,
        FencedWriter(settings.database_url or "", ref, lease) as writer,
    ):
        yield lease, writer


def directory_of(settings: Settings, ref: AttemptRef) -> Path:
    return settings.work_directory / ref.job_id / f"a{ref.attempt}"


def _wait(lease: Lease, seconds: float) -> None:
    lease.wait(seconds)
    lease.check()
