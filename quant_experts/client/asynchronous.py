"""``AsyncClient``: the API for programs that run in an event loop. The same methods as ``Client``, to be awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from pydantic import PrivateAttr

from quant_experts.client import calls, configuration
from quant_experts.client.calls import Call
from quant_experts.client.download import OnProgress, chosen, pull
from quant_experts.client.errors import error_of
from quant_experts.client.following import Following
from quant_experts.client.retrying import RetryPolicy, unreachable
from quant_experts.client.synchronous import SILENCE, STREAM_TIMEOUT, TIMEOUT, Client, Files
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


class AsyncClient:
    """Speaks to one service with one key. Close it, or use it as an asynchronous context manager."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry: RetryPolicy | None = None,
        timeout: httpx.Timeout | float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Without ``url`` and ``api_key``: QE_URL and QE_API_KEY, then the config file. Raises MisconfiguredClient."""
        self.access = configuration.resolve(url, api_key)
        self.policy = retry or RetryPolicy()
        self._http = httpx.AsyncClient(
            base_url=self.access.url,
            headers=configuration.headers(self.access),
            timeout=timeout,
            transport=transport,
            follow_redirects=False,
        )
        self.jobs = AsyncJobs(self)
        self.datasets = AsyncDatasets(self)
        self.keys = AsyncKeys(self)

    async def schemes(self) -> Schemes:
        """What a job may ask for."""
        return await self.send(calls.schemes())

    async def workers(self) -> list[WorkerView]:
        return await self.send(calls.workers())

    async def send(self, call: Call[T]) -> T:
        """Carry out one call, again where that may help. Raises ApiError or ConnectionFailed."""
        attempt = 0
        while True:
            failure: Exception | None
            try:
                response = await self._http.request(
                    call.method, call.path, params=call.params, json=call.json, headers=call.headers
                )
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
            await asyncio.sleep(pause)
            attempt += 1

    async def pages(self, call: Call[Page[T]]) -> AsyncIterator[T]:
        """Every entry of a listing, page after page as they are needed."""
        following: Call[Page[T]] | None = call
        while following is not None:
            page = await self.send(following)
            for entry in page.data:
                yield entry
            following = calls.next_page(following, page)

    def stream(
        self, path: str, headers: Mapping[str, str], *, timeout: httpx.Timeout
    ) -> AbstractAsyncContextManager[httpx.Response]:
        """One GET whose body is read as it comes."""
        return self._http.stream("GET", path, headers=headers, timeout=timeout)

    async def in_thread(self, work: Callable[[Client, threading.Event], T]) -> T:
        """Run ``work(client, stop)`` beside the event loop with a blocking client; a cancelled task stops it."""
        stop = threading.Event()

        def run() -> T:
            with Client(self.access.url, self.access.api_key, retry=self.policy) as client:
                return work(client, stop)

        try:
            return await asyncio.to_thread(run)
        except asyncio.CancelledError:
            stop.set()
            raise

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncJob(JobView):
    """A job as it was when it was asked for, and what can be done with it."""

    _client: AsyncClient = PrivateAttr()

    async def refresh(self) -> AsyncJob:
        """The job as it is now."""
        return await self._client.jobs.get(self.id)

    def follow(self, *, after: int = 0, silence: float = SILENCE) -> AsyncIterator[EventView]:
        """Its events as they happen, each once and in order, to the last one of a finished job."""
        return self._client.jobs.follow(self.id, after=after, silence=silence)

    async def wait(self) -> AsyncJob:
        """The finished job."""
        async for _ in self.follow():
            pass
        return await self.refresh()

    async def cancel(self) -> AsyncJob:
        return await self._client.jobs.cancel(self.id)

    async def retry(self) -> AsyncJob:
        return await self._client.jobs.retry(self.id)

    def layers(self) -> AsyncIterator[LayerView]:
        """The finished decoder blocks with the errors of their input groups."""
        return self._client.jobs.layers(self.id)

    async def history(self) -> list[AttemptView]:
        """Who ran it, why each attempt ended, where it resumed."""
        return await self._client.send(calls.attempts(self.id))

    async def report(self) -> dict[str, Any]:
        return await self._client.send(calls.report(self.id))

    async def report_page(self) -> str:
        """The report for people: one HTML page without scripts or requests."""
        return await self._client.send(calls.report_page(self.id))

    async def artifacts(self) -> list[ArtifactView]:
        return await self._client.send(calls.artifacts(self.id))

    async def pull(
        self,
        directory: str | Path,
        *,
        names: Sequence[str] | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
    ) -> list[Path]:
        """Download every file, or those of ``names``; ``on_progress`` is called from other threads."""
        return await self._client.jobs.pull(self.id, directory, names=names, parallel=parallel, on_progress=on_progress)


class AsyncJobs:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(self, *, model: str, calibration: str | DatasetView, scheme: str, **fields: Any) -> AsyncJob:
        """Queue a job; ``fields`` as in ``Client.jobs.create``."""
        rows = calibration if isinstance(calibration, str) else calibration.id
        call = calls.create_job(AsyncJob, model=model, calibration=rows, scheme=scheme, **fields)
        return self._bound(await self._client.send(call))

    async def get(self, job_id: str) -> AsyncJob:
        return self._bound(await self._client.send(calls.get_job(AsyncJob, job_id)))

    async def list(
        self,
        *,
        status: Sequence[str] = (),
        label: Mapping[str, str | None] | None = None,
        model: str | None = None,
        scheme: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[AsyncJob]:
        """Jobs, newest first; pages are fetched as they are needed."""
        call = calls.list_jobs(
            AsyncJob,
            status=status,
            label=label,
            model=model,
            scheme=scheme,
            created_after=created_after,
            created_before=created_before,
            page_size=page_size,
        )
        async for job in self._client.pages(call):
            yield self._bound(job)

    async def cancel(self, job_id: str) -> AsyncJob:
        """Ask it to stop; asking again changes nothing. Raises Conflict when it has finished."""
        return self._bound(await self._client.send(calls.cancel_job(AsyncJob, job_id)))

    async def retry(self, job_id: str) -> AsyncJob:
        """Queue a failed or cancelled job again; it goes on after its last finished block."""
        return self._bound(await self._client.send(calls.retry_job(AsyncJob, job_id)))

    async def follow(self, job_id: str, *, after: int = 0, silence: float = SILENCE) -> AsyncIterator[EventView]:
        """Raises ApiError, or ConnectionFailed when the service was not heard of for ``silence`` seconds."""
        following = Following(after=after, patience=silence, policy=self._client.policy)
        path = calls.events_path(job_id)
        while not following.ended:
            failure: Exception | None = None
            try:
                async with self._client.stream(path, following.headers(), timeout=STREAM_TIMEOUT) as response:
                    if response.status_code == 204:
                        following.nothing_left()
                    elif response.is_error:
                        await response.aread()
                        failure = error_of(response)
                    else:
                        async for chunk in response.aiter_bytes():
                            for event in following.feed(chunk):
                                yield event
                        following.closed()
            except httpx.TransportError as error:
                failure = error
            if not following.ended:
                await asyncio.sleep(following.pause(failure))

    async def layers(self, job_id: str) -> AsyncIterator[LayerView]:
        after = -1
        while True:
            page = await self._client.send(calls.layers(job_id, after=after))
            for layer in page.data:
                yield layer
            if not page.has_more:
                return
            after = page.data[-1].block

    async def pull(
        self,
        job_id: str,
        directory: str | Path,
        *,
        names: Sequence[str] | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
    ) -> Files:
        """Writing files blocks, so this happens in threads."""
        artifacts = await self._client.send(calls.artifacts(job_id))
        wanted = chosen(artifacts, names, job_id)

        def work(client: Client, stop: threading.Event) -> Files:
            return pull(
                wanted,
                Path(directory),
                open_file=lambda name, headers: client.stream(calls.artifact_path(job_id, name), headers),
                policy=client.policy,
                parallel=parallel,
                on_progress=on_progress,
                stop=stop,
            )

        return await self._client.in_thread(work)

    def _bound(self, job: AsyncJob) -> AsyncJob:
        job._client = self._client
        return job


class AsyncDatasets:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def upload(self, path: str | Path, *, name: str | None = None, reuse: bool = True) -> DatasetView:
        """As ``Client.datasets.upload``; reading files blocks, so this happens in a thread."""
        return await self._client.in_thread(lambda client, stop: client.datasets.upload(path, name=name, reuse=reuse))

    async def get(self, dataset_id: str) -> DatasetView:
        return await self._client.send(calls.get_dataset(dataset_id))

    def list(self, *, sha256: str | None = None) -> AsyncIterator[DatasetView]:
        return self._client.pages(calls.list_datasets(sha256=sha256))

    async def delete(self, dataset_id: str) -> None:
        """Raises Conflict while a job needs it."""
        await self._client.send(calls.delete_dataset(dataset_id))


class AsyncKeys:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self, *, name: str, scopes: Sequence[str], expires_at: datetime | None = None, tenant: str | None = None
    ) -> CreatedKey:
        """The answer is the only place where the key ever stands."""
        return await self._client.send(calls.create_key(name=name, scopes=scopes, expires_at=expires_at, tenant=tenant))

    def list(self) -> AsyncIterator[KeyView]:
        return self._client.pages(calls.list_keys())

    async def revoke(self, key_id: str) -> KeyView:
        return await self._client.send(calls.revoke_key(key_id))
