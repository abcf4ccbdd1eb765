"""One job, what it is made of, and what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Required, TypedDict, TypeVar, Unpack

from pydantic import PrivateAttr

from quant_experts.client.download import OnProgress, chosen, pull
from quant_experts.client.effects import Item, Operation, Stream, last_of, run_blocking
from quant_experts.client.operation import Awaited, Blocking, Operations, bound, listing, operation
from quant_experts.client.polling import SILENCE, follow_events
from quant_experts.client.requests import jobs as requests
from quant_experts.client.requests import pushes as push_requests
from quant_experts.client.requests.base import Request
from quant_experts.client.views.datasets import DatasetView
from quant_experts.client.views.jobs import ArtifactView, AttemptView, EventView, JobView, LayerView
from quant_experts.client.views.pushes import PushView
from quant_experts.spec.exports import EXPORTS_FOLDER

J = TypeVar("J", bound="JobOperations[Any]")
Files = list[Path]


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
    push_to: Sequence[Mapping[str, Any]] | None


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
    exports: Sequence[str] | None
    evaluation: Mapping[str, Any] | None


class Changes(TypedDict, total=False):
    """Fields of a job that are to be other ones: mappings are merged field by field, None takes away."""

    model: Mapping[str, Any]
    calibration: Mapping[str, Any]
    scheme: str
    method: str
    options: Mapping[str, Any] | None
    target: Mapping[str, Any] | None
    accept_if: Mapping[str, Any] | None
    exports: Sequence[str] | None
    evaluation: Mapping[str, Any] | None
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
        return layers_of(self, self.id)

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
        export: str | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
    ) -> Operation[Files]:
        """Download every file, or those of ``names``, into ``directory``; what is there already is not sent again.
        ``export``: the files of the export in this format and no others. ``on_progress`` is called from other threads.
        """
        return pull_files(
            self, self.id, directory, names=names, export=export, parallel=parallel, on_progress=on_progress
        )

    @operation
    def push(
        self, to: str, *, export: str | None = None, private: bool = True, idempotency_key: str | None = None
    ) -> Operation[PushView]:
        """Push its checkpoint, or an ``export``, to ``hub:owner/name`` or ``s3://bucket/prefix``, with the tenant's key
        for it; as soon as it has succeeded, if it has not yet. ``private``: never into a public repository."""
        request = push_requests.create_push(
            self.id, to=to, export=export, private=private, idempotency_key=idempotency_key
        )
        return self._send(request)

    @listing
    def pushes(self) -> Stream[PushView]:
        """Where its files were pushed, newest first."""
        return self._pages(push_requests.list_pushes(self.id))

    @operation
    def get_push(self, push_id: str) -> Operation[PushView]:
        """How far a push is, and why its last attempt failed."""
        return self._send(push_requests.get_push(self.id, push_id))

    @operation
    def cancel_push(self, push_id: str) -> Operation[PushView]:
        """End a push where it stands. Raises Conflict when it has ended otherwise."""
        return self._send(push_requests.cancel_push(self.id, push_id))

    def _kind(self) -> type[J]:
        return type(self)  # type: ignore[return-value]

    def _again(self, request: Request[J]) -> Operation[J]:
        return bound(self, request)


class Job(JobView, JobOperations["Job"], Blocking):
    _transport: Any = PrivateAttr()


class AsyncJob(JobView, JobOperations["AsyncJob"], Awaited):
    _transport: Any = PrivateAttr()


def layers_of(owner: Operations, job_id: str) -> Stream[LayerView]:
    after = -1
    while True:
        page = yield from owner._send(requests.layers(job_id, after=after))
        for layer in page.data:
            yield Item(layer)
        if not page.has_more:
            return
        after = page.data[-1].block


def pull_files(
    owner: Operations,
    job_id: str,
    directory: str | Path,
    *,
    names: Sequence[str] | None,
    export: str | None,
    parallel: int,
    on_progress: OnProgress | None,
) -> Operation[Files]:
    folder = f"{EXPORTS_FOLDER}/{export}/" if export else ""
    files = chosen((yield from owner._send(requests.artifacts(job_id))), names, job_id, folder=folder)
    return (
        yield from run_blocking(
            lambda transport, stop: pull(
                files,
                Path(directory),
                folder=folder,
                open_file=lambda name, headers: transport.stream(requests.artifact_path(job_id, name), headers),
                policy=transport.policy,
                parallel=parallel,
                on_progress=on_progress,
                stop=stop,
            )
        )
    )
