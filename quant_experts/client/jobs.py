"""Jobs and plans, and what can be done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Required, TypedDict, TypeVar, Unpack

from pydantic import PrivateAttr

from quant_experts.client.download import OnProgress, chosen, pull
from quant_experts.client.effects import Item, Operation, Stream, last_of, run_blocking
from quant_experts.client.operation import Awaited, Blocking, Operations, bound, bound_entries, listing, operation
from quant_experts.client.polling import SILENCE, follow_events
from quant_experts.client.requests import jobs as requests
from quant_experts.client.requests.base import Request
from quant_experts.client.views.datasets import DatasetView
from quant_experts.client.views.jobs import ArtifactView, AttemptView, EventView, JobView, LayerView
from quant_experts.client.views.plans import KeptPlanView, PlanView

J = TypeVar("J", bound="JobOperations[Any]")
PL = TypeVar("PL", bound="PlanOperations[Any]")
Files = list[Path]
_List = list


class Names(TypedDict, total=False):
    """What names, labels and judges a job, and decides nothing of what is computed."""

    accept_if: Mapping[str, Any] | None
    name: str | None
    alias: str | None
    labels: Mapping[str, str] | None
    timeout_s: int | None
    max_wait_s: int | None
    priority: int | None
    device: str | None


class JobFields(Names, total=False):
    """What a job is made of, as arguments. Fields of the body that are not here, because this version of the client
    does not know them, are sent as they are."""

    model: Required[str]
    calibration: Required[str | DatasetView]
    scheme: Required[str]
    revision: str | None
    split: str | None
    method: str | None
    options: Mapping[str, Any] | None
    target: Mapping[str, Any] | None


class Changes(TypedDict, total=False):
    """Fields of a job that are to be other ones: mappings are merged field by field, None takes away."""

    model: Mapping[str, Any]
    calibration: Mapping[str, Any]
    scheme: str
    method: str
    options: Mapping[str, Any] | None
    target: Mapping[str, Any] | None
    accept_if: Mapping[str, Any] | None
    name: str
    alias: str | None
    labels: Mapping[str, str | None] | None
    timeout_s: int
    max_wait_s: int | None
    priority: int
    device: str | None


class JobOperations(Operations, Generic[J]):
    """A job as it was when it was asked for, and what can be done with it."""

    id: str

    @operation
    def refresh(self) -> Operation[J]:
        """The job as it is now."""
        return self._again(requests.get_job(self._kind(), self.id))

    @listing
    def follow(self, *, after: int = 0, silence: float = SILENCE) -> Stream[EventView]:
        """Its events as they happen, each once and in order, to the last one of a finished job."""
        return follow_events(self.id, after=after, silence=silence, policy=self._policy)

    @operation
    def wait(self) -> Operation[J]:
        """The finished job."""
        yield from last_of(follow_events(self.id, after=0, silence=SILENCE, policy=self._policy))
        return (yield from self._again(requests.get_job(self._kind(), self.id)))

    @operation
    def cancel(self) -> Operation[J]:
        """Ask it to stop; asking again changes nothing. Raises Conflict when it has finished."""
        return self._again(requests.cancel_job(self._kind(), self.id))

    @operation
    def retry(self) -> Operation[J]:
        """Queue a failed or cancelled job again; it goes on after its last finished block."""
        return self._again(requests.retry_job(self._kind(), self.id))

    @operation
    def delete(self) -> Operation[None]:
        """Remove it with its files, events and blocks. Raises Conflict while it waits or runs."""
        return self._send(requests.delete_job(self.id))

    @operation
    def delete_artifacts(self) -> Operation[None]:
        """Remove its files; the job stays, with its figures. Raises Conflict while it waits or runs."""
        return self._send(requests.delete_artifacts(self.id))

    @operation
    def fork(self, *, idempotency_key: str | None = None, **changes: Unpack[Changes]) -> Operation[J]:
        """Queue the same job with changes; what it computed before the first difference is taken over."""
        return self._again(requests.fork_job(self._kind(), self.id, changes, idempotency_key=idempotency_key))

    @listing
    def layers(self) -> Stream[LayerView]:
        """The finished decoder blocks with the errors of their input groups."""
        return _layers(self, self.id)

    @operation
    def history(self) -> Operation[list[AttemptView]]:
        """Who ran it, why each attempt ended, where it resumed."""
        return self._send(requests.attempts(self.id))

    @operation
    def log(self, *, tail: int = 1000) -> Operation[str]:
        """Its last ``tail`` events as text, a line each, oldest first."""
        return self._send(requests.log(self.id, tail=tail))

    @operation
    def report(self) -> Operation[dict[str, Any]]:
        return self._send(requests.report(self.id))

    @operation
    def report_page(self) -> Operation[str]:
        """The report for people: one HTML page without scripts or requests."""
        return self._send(requests.report_page(self.id))

    @operation
    def artifacts(self) -> Operation[list[ArtifactView]]:
        return self._send(requests.artifacts(self.id))

    @operation
    def pull(
        self,
        directory: str | Path,
        *,
        names: Sequence[str] | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
    ) -> Operation[Files]:
        """Download every file, or those of ``names``, into ``directory``; what is there already is not sent again.
        ``on_progress`` is called from other threads."""
        return _pull(self, self.id, directory, names=names, parallel=parallel, on_progress=on_progress)

    def _kind(self) -> type[J]:
        return type(self)  # type: ignore[return-value]

    def _again(self, request: Request[J]) -> Operation[J]:
        return bound(self, request)


class Job(JobView, JobOperations["Job"], Blocking):
    _transport: Any = PrivateAttr()


class AsyncJob(JobView, JobOperations["AsyncJob"], Awaited):
    _transport: Any = PrivateAttr()


class PlanOperations(Operations, Generic[J]):
    """What a job would take, and every reason it would be refused."""

    digest: str
    _fields: JobFields
    _job: type[J]

    @operation
    def create(self, *, idempotency_key: str | None = None) -> Operation[J]:
        """Queue the job that was planned, at the commits that were planned. Raises InvalidRequest, Conflict when that
        is no longer what they are."""
        return bound(
            self, requests.create_job(self._job, self._fields, plan=self.digest, idempotency_key=idempotency_key)
        )


class Plan(PlanView, PlanOperations[Job], Blocking):
    _transport: Any = PrivateAttr()
    _fields: JobFields = PrivateAttr()
    _job: type[Job] = PrivateAttr(Job)


class AsyncPlan(PlanView, PlanOperations[AsyncJob], Awaited):
    _transport: Any = PrivateAttr()
    _fields: JobFields = PrivateAttr()
    _job: type[AsyncJob] = PrivateAttr(AsyncJob)


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
        planned = yield from self._send(requests.stored_plan(digest))
        fields: JobFields = {
            "model": planned.model.id,
            "revision": planned.model.revision,
            "calibration": planned.calibration.dataset,
            "split": planned.calibration.split,
            "scheme": planned.scheme,
            "method": planned.method,
            "options": planned.options,
            "target": planned.target,
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
        deleted: _List[str] = []
        while True:
            part = yield from self._send(request)
            deleted += part.deleted
            if not part.has_more or not part.deleted:
                return deleted

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
        return _layers(self, job_id)

    @operation
    def pull(
        self,
        job_id: str,
        directory: str | Path,
        *,
        names: Sequence[str] | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
    ) -> Operation[Files]:
        return _pull(self, job_id, directory, names=names, parallel=parallel, on_progress=on_progress)


class Jobs(Blocking, JobsOperations[Job, Plan]):
    _job, _plan = Job, Plan


class AsyncJobs(Awaited, JobsOperations[AsyncJob, AsyncPlan]):
    _job, _plan = AsyncJob, AsyncPlan


def _layers(owner: Operations, job_id: str) -> Stream[LayerView]:
    after = -1
    while True:
        page = yield from owner._send(requests.layers(job_id, after=after))
        for layer in page.data:
            yield Item(layer)
        if not page.has_more:
            return
        after = page.data[-1].block


def _pull(
    owner: Operations,
    job_id: str,
    directory: str | Path,
    *,
    names: Sequence[str] | None,
    parallel: int,
    on_progress: OnProgress | None,
) -> Operation[Files]:
    files = chosen((yield from owner._send(requests.artifacts(job_id))), names, job_id)
    return (
        yield from run_blocking(
            lambda transport, stop: pull(
                files,
                Path(directory),
                open_file=lambda name, headers: transport.stream(requests.artifact_path(job_id, name), headers),
                policy=transport.policy,
                parallel=parallel,
                on_progress=on_progress,
                stop=stop,
            )
        )
    )
