"""The jobs of a tenant: make, plan, list, change and follow them by their ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

from quant_experts.client.download import OnProgress
from quant_experts.client.effects import Item, Operation, Stream
from quant_experts.client.job import (
    AsyncJob,
    Changes,
    Files,
    Job,
    JobFields,
    JobOperations,
    Names,
    layers_of,
    pull_files,
)
from quant_experts.client.operation import Awaited, Blocking, Operations, bound, bound_entries, listing, operation
from quant_experts.client.plans import AsyncPlan, Plan, PlanOperations
from quant_experts.client.polling import SILENCE, follow_events
from quant_experts.client.requests import jobs as requests
from quant_experts.client.views.jobs import EventView, LayerView
from quant_experts.client.views.plans import KeptPlanView, PlanView

J = TypeVar("J", bound="JobOperations[Any]")
PL = TypeVar("PL", bound="PlanOperations[Any]")
_List = list


class JobsOperations(Operations, Generic[J, PL]):
    _job: type[J]
    _plan: type[PL]

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @operation
    def create(
        self,
        *,
        plan: str | PlanView | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> Operation[J]:
        """Queue a job. A key that makes the request safe to repeat goes with it; give your own to be safe over restarts
        of your program. ``plan``: or its digest; the job then runs exactly what was planned, or is refused."""
        digest = plan.digest if isinstance(plan, PlanView) else plan
        return bound(self, requests.create_job(self._job, fields, plan=digest, idempotency_key=idempotency_key))

    @operation
    def plan(self, **fields: Unpack[JobFields]) -> Operation[PL]:
        """What the job would take, and every reason it would be refused; nothing is run."""
        plan = yield from bound(self, requests.plan_job(self._plan, fields))
        plan._fields = fields
        return plan

    @operation
    def create_planned(
        self, digest: str, *, idempotency_key: str | None = None, **named: Unpack[Names]
    ) -> Operation[J]:
        """Queue exactly what was planned under ``digest``, by whoever of the tenant. Raises NotFound for a plan that is
        older than a day, InvalidRequest for one that was refused, Conflict when its inputs have changed."""
        document = yield from self._send(requests.stored_plan(digest))
        fields: JobFields = {
            "model": document.model.id,
            "revision": document.model.revision,
            "calibration": document.calibration.dataset,
            "split": document.calibration.split,
            "scheme": document.scheme,
            "method": document.method,
            "options": document.options,
            "target": document.target,
            "exports": document.exports,
            "evaluation": document.evaluation,
            **named,
        }
        request = requests.create_job(self._job, fields, plan=digest, idempotency_key=idempotency_key)
        return (yield from bound(self, request))

    @operation
    def planned(self, digest: str) -> Operation[KeptPlanView]:
        """What was planned under a digest, within the last day."""
        return self._send(requests.stored_plan(digest))

    @operation
    def get(self, job_id: str) -> Operation[J]:
        return bound(self, requests.get_job(self._job, job_id))

    @listing
    def list(
        self,
        *,
        status: Sequence[str] = (),
        label: Mapping[str, str | None] | None = None,
        model: str | None = None,
        scheme: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = 100,
    ) -> Stream[J]:
        """Jobs, newest first; pages are fetched as they are needed."""
        request = requests.list_jobs(
            self._job,
            status=status,
            label=label,
            model=model,
            scheme=scheme,
            created_after=created_after,
            created_before=created_before,
            page_size=page_size,
        )
        return bound_entries(self, request)

    @operation
    def cancel(self, job_id: str) -> Operation[J]:
        """Ask it to stop; asking again changes nothing. Raises Conflict when it has finished."""
        return bound(self, requests.cancel_job(self._job, job_id))

    @operation
    def retry(self, job_id: str) -> Operation[J]:
        """Queue a failed or cancelled job again; it goes on after its last finished block."""
        return bound(self, requests.retry_job(self._job, job_id))

    @operation
    def delete(self, job_id: str) -> Operation[None]:
        """Remove it with its files, events and blocks. Raises Conflict while it waits or runs."""
        return self._send(requests.delete_job(job_id))

    @operation
    def delete_artifacts(self, job_id: str) -> Operation[None]:
        """Remove its files; the job stays, with its figures. Raises Conflict while it waits or runs."""
        return self._send(requests.delete_artifacts(job_id))

    @operation
    def delete_many(
        self,
        *,
        ids: Sequence[str] = (),
        status: Sequence[str] = (),
        label: Mapping[str, str | None] | None = None,
        model: str | None = None,
        scheme: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        finished_before: datetime | None = None,
    ) -> Operation[_List[str]]:
        """Remove the finished jobs of ``ids``, or all that the filters let through; the ids of what was removed."""
        request = requests.delete_jobs(
            ids=ids,
            status=status,
            label=label,
            model=model,
            scheme=scheme,
            created_after=created_after,
            created_before=created_before,
            finished_before=finished_before,
        )
        job_ids: _List[str] = []
        while True:
            part = yield from self._send(request)
            job_ids += part.deleted
            if not part.has_more or not part.deleted:
                return job_ids

    @operation
    def fork(self, job_id: str, *, idempotency_key: str | None = None, **changes: Unpack[Changes]) -> Operation[J]:
        """Queue the same job with changes; what it computed before the first difference is taken over."""
        return bound(self, requests.fork_job(self._job, job_id, changes, idempotency_key=idempotency_key))

    @listing
    def events(self, job_id: str, *, after: int = 0) -> Stream[EventView]:
        """What has happened so far."""
        while True:
            page = yield from self._send(requests.events(job_id, after=after))
            for event in page.data:
                yield Item(event)
            if not page.has_more:
                return
            after = page.next_after

    @listing
    def follow(self, job_id: str, *, after: int = 0, silence: float = SILENCE) -> Stream[EventView]:
        """Raises ApiError, or ConnectionFailed when the service was not heard of for ``silence`` seconds."""
        return follow_events(job_id, after=after, silence=silence, policy=self._policy)

    @listing
    def layers(self, job_id: str) -> Stream[LayerView]:
        return layers_of(self, job_id)

    @operation
    def pull(
        self,
        job_id: str,
        directory: str | Path,
        *,
        names: Sequence[str] | None = None,
        export: str | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
    ) -> Operation[Files]:
        return pull_files(
            self, job_id, directory, names=names, export=export, parallel=parallel, on_progress=on_progress
        )


class Jobs(Blocking, JobsOperations[Job, Plan]):
    _job, _plan = Job, Plan


class AsyncJobs(Awaited, JobsOperations[AsyncJob, AsyncPlan]):
    _job, _plan = AsyncJob, AsyncPlan
