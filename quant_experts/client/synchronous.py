"""``Client``: the API for programs that block."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from pydantic import PrivateAttr

from quant_experts.client import calls, configuration
from quant_experts.client.calls import Call
from quant_experts.client.download import OnProgress, chosen, pull
from quant_experts.client.errors import LOST_ANSWER, error_of
from quant_experts.client.following import Following
from quant_experts.client.retrying import RetryPolicy, unreachable
from quant_experts.client.views import (
    ArtifactView,
    AttemptView,
    CreatedKey,
    DatasetView,
    EventView,
    JobView,
    KeyView,
    LayerView,
    Page,
    Schemes,
    WorkerView,
)

T = TypeVar("T")
Files = list[Path]

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
STREAM_TIMEOUT = httpx.Timeout(45.0, connect=10.0)
"""The service says something every 15 seconds; three times that and the connection is dead."""
SILENCE = 600.0
"""Seconds without a word for which ``follow`` goes on trying to reach the service."""
UPLOADS = 3
"""How often a file is sent in full before its upload is given up."""


class Client:
    """Speaks to one service with one key. Safe to share between threads. Close it, or use it as a context manager."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry: RetryPolicy | None = None,
        timeout: httpx.Timeout | float = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Without ``url`` and ``api_key``: QE_URL and QE_API_KEY, then the config file. Raises MisconfiguredClient."""
        self.access = configuration.resolve(url, api_key)
        self.policy = retry or RetryPolicy()
        self._http = httpx.Client(
            base_url=self.access.url,
            headers=configuration.headers(self.access),
            timeout=timeout,
            transport=transport,
            follow_redirects=False,
        )
        self.jobs = Jobs(self)
        self.datasets = Datasets(self)
        self.keys = Keys(self)

    def schemes(self) -> Schemes:
        """What a job may ask for."""
        return self.send(calls.schemes())

    def workers(self) -> list[WorkerView]:
        return self.send(calls.workers())

    def send(self, call: Call[T], *, file: tuple[Path, str] | None = None) -> T:
        """Carry out one call, again where that may help. ``file``: sent as the form's part ``file``, under a name.

        Raises ApiError or ConnectionFailed.
        """
        attempt = 0
        while True:
            failure: Exception | None
            try:
                response = self._request(call, file)
                failure = error_of(response)
                if failure is None:
                    return call.read(response)
            except httpx.TransportError as error:
                failure = error
            pause = self.policy.pause(failure, attempt=attempt, repeatable=call.repeatable)
            if pause is None:
                if isinstance(failure, httpx.TransportError):
                    raise unreachable(failure, f"{call.method} {self.access.url}{call.path}") from failure
                raise failure
            time.sleep(pause)
            attempt += 1

    def pages(self, call: Call[Page[T]]) -> Iterator[T]:
        """Every entry of a listing, page after page as they are needed."""
        following: Call[Page[T]] | None = call
        while following is not None:
            page = self.send(following)
            yield from page.data
            following = calls.next_page(following, page)

    def stream(
        self, path: str, headers: Mapping[str, str], *, timeout: httpx.Timeout = STREAM_TIMEOUT
    ) -> AbstractContextManager[httpx.Response]:
        """One GET whose body is read as it comes. A redirect, as to an object store, is followed without our key."""
        return self._http.stream("GET", path, headers=headers, timeout=timeout, follow_redirects=True)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, call: Call[Any], file: tuple[Path, str] | None) -> httpx.Response:
        if file is None:
            return self._http.request(call.method, call.path, params=call.params, json=call.json, headers=call.headers)
        path, name = file
        with path.open("rb") as content:
            form = {"file": (name, content, "application/octet-stream")}
            return self._http.request(call.method, call.path, files=form, headers=call.headers)


class Job(JobView):
    """A job as it was when it was asked for, and what can be done with it."""

    _client: Client = PrivateAttr()

    def refresh(self) -> Job:
        """The job as it is now."""
        return self._client.jobs.get(self.id)

    def follow(self, *, after: int = 0, silence: float = SILENCE) -> Iterator[EventView]:
        """Its events as they happen, each once and in order, to the last one of a finished job."""
        return self._client.jobs.follow(self.id, after=after, silence=silence)

    def wait(self) -> Job:
        """The finished job."""
        for _ in self.follow():
            pass
        return self.refresh()

    def cancel(self) -> Job:
        return self._client.jobs.cancel(self.id)

    def retry(self) -> Job:
        return self._client.jobs.retry(self.id)

    def layers(self) -> Iterator[LayerView]:
        """The finished decoder blocks with the errors of their input groups."""
        return self._client.jobs.layers(self.id)

    def history(self) -> list[AttemptView]:
        """Who ran it, why each attempt ended, where it resumed."""
        return self._client.send(calls.attempts(self.id))

    def report(self) -> dict[str, Any]:
        return self._client.send(calls.report(self.id))

    def report_page(self) -> str:
        """The report for people: one HTML page without scripts or requests."""
        return self._client.send(calls.report_page(self.id))

    def artifacts(self) -> list[ArtifactView]:
        return self._client.send(calls.artifacts(self.id))

    def pull(
        self,
        directory: str | Path,
        *,
        names: Sequence[str] | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
    ) -> list[Path]:
        """Download every file, or those of ``names``, into ``directory``; what is there already is not sent again."""
        return self._client.jobs.pull(self.id, directory, names=names, parallel=parallel, on_progress=on_progress)


class Jobs:
    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        *,
        model: str,
        calibration: str | DatasetView,
        scheme: str,
        revision: str | None = None,
        split: str | None = None,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        target: Mapping[str, Any] | None = None,
        accept_if: Mapping[str, Any] | None = None,
        name: str | None = None,
        alias: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout_s: int | None = None,
        idempotency_key: str | None = None,
        **more: Any,
    ) -> Job:
        """Queue a job. A key that makes the request safe to repeat goes with it; give your own to be safe over
        restarts of your program. ``more``: fields of the body that this version of the client does not name.
        """
        call = calls.create_job(
            Job,
            model=model,
            calibration=calibration if isinstance(calibration, str) else calibration.id,
            scheme=scheme,
            revision=revision,
            split=split,
            idempotency_key=idempotency_key,
            method=method,
            options=options,
            target=target,
            accept_if=accept_if,
            name=name,
            alias=alias,
            labels=labels,
            timeout_s=timeout_s,
            **more,
        )
        return self._bound(self._client.send(call))

    def get(self, job_id: str) -> Job:
        return self._bound(self._client.send(calls.get_job(Job, job_id)))

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
    ) -> Iterator[Job]:
        """Jobs, newest first; pages are fetched as they are needed."""
        call = calls.list_jobs(
            Job,
            status=status,
            label=label,
            model=model,
            scheme=scheme,
            created_after=created_after,
            created_before=created_before,
            page_size=page_size,
        )
        return map(self._bound, self._client.pages(call))

    def cancel(self, job_id: str) -> Job:
        """Ask it to stop; asking again changes nothing. Raises Conflict when it has finished."""
        return self._bound(self._client.send(calls.cancel_job(Job, job_id)))

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again; it goes on after its last finished block."""
        return self._bound(self._client.send(calls.retry_job(Job, job_id)))

    def events(self, job_id: str, *, after: int = 0) -> Iterator[EventView]:
        """What has happened so far."""
        while True:
            page = self._client.send(calls.events(job_id, after=after))
            yield from page.data
            if not page.has_more:
                return
            after = page.next_after

    def follow(self, job_id: str, *, after: int = 0, silence: float = SILENCE) -> Iterator[EventView]:
        """Raises ApiError, or ConnectionFailed when the service was not heard of for ``silence`` seconds."""
        following = Following(after=after, patience=silence, policy=self._client.policy)
        path = calls.events_path(job_id)
        while not following.ended:
            failure: Exception | None = None
            try:
                with self._client.stream(path, following.headers()) as response:
                    if response.status_code == 204:
                        following.nothing_left()
                    elif response.is_error:
                        response.read()
                        failure = error_of(response)
                    else:
                        for chunk in response.iter_bytes():
                            yield from following.feed(chunk)
                        following.closed()
            except httpx.TransportError as error:
                failure = error
            if not following.ended:
                time.sleep(following.pause(failure))

    def layers(self, job_id: str) -> Iterator[LayerView]:
        after = -1
        while True:
            page = self._client.send(calls.layers(job_id, after=after))
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].block

    def pull(
        self,
        job_id: str,
        directory: str | Path,
        *,
        names: Sequence[str] | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
    ) -> Files:
        artifacts = self._client.send(calls.artifacts(job_id))
        return pull(
            chosen(artifacts, names, job_id),
            Path(directory),
            open_file=lambda name, headers: self._client.stream(calls.artifact_path(job_id, name), headers),
            policy=self._client.policy,
            parallel=parallel,
            on_progress=on_progress,
        )

    def _bound(self, job: Job) -> Job:
        job._client = self._client
        return job


class Datasets:
    def __init__(self, client: Client) -> None:
        self._client = client

    def upload(self, path: str | Path, *, name: str | None = None, reuse: bool = True) -> DatasetView:
        """Upload JSONL or Parquet rows. ``reuse``: the same bytes, uploaded before, are not sent again.

        Raises InvalidRequest whose ``errors`` name the bad rows.
        """
        path = Path(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        for left in reversed(range(UPLOADS)):
            if reuse:
                known = next(self.list(sha256=sha256), None)
                if known is not None:
                    return known
            try:
                return self._client.send(calls.upload(), file=(path, name or path.name))
            except LOST_ANSWER:
                if not left:
                    raise
                reuse = True  # it may have arrived all the same: look before all of it is sent again
        raise AssertionError("not reached")

    def get(self, dataset_id: str) -> DatasetView:
        return self._client.send(calls.get_dataset(dataset_id))

    def list(self, *, sha256: str | None = None) -> Iterator[DatasetView]:
        return self._client.pages(calls.list_datasets(sha256=sha256))

    def delete(self, dataset_id: str) -> None:
        """Raises Conflict while a job needs it."""
        self._client.send(calls.delete_dataset(dataset_id))


class Keys:
    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self, *, name: str, scopes: Sequence[str], expires_at: datetime | None = None, tenant: str | None = None
    ) -> CreatedKey:
        """The answer is the only place where the key ever stands."""
        return self._client.send(calls.create_key(name=name, scopes=scopes, expires_at=expires_at, tenant=tenant))

    def list(self) -> Iterator[KeyView]:
        return self._client.pages(calls.list_keys())

    def revoke(self, key_id: str) -> KeyView:
        return self._client.send(calls.revoke_key(key_id))
