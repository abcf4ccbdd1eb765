"""Datasets: uploaded once, in parts when they are large, looked into, removed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from quant_experts.client.effects import Item, Operation, Stream, run_blocking
from quant_experts.client.embedded_images import OnEmbeddingProgress
from quant_experts.client.operation import Awaited, Blocking, Operations, listing, operation
from quant_experts.client.requests import datasets as requests
from quant_experts.client.upload import PART_BYTES, upload
from quant_experts.client.upload_progress import OnUploadProgress
from quant_experts.client.views.datasets import DatasetView, FiguresView, RowView


class DatasetOperations(Operations):
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @operation
    def upload(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        expires_at: datetime | None = None,
        reuse: bool = True,
        part_bytes: int = PART_BYTES,
        parallel: int = 3,
        on_progress: OnUploadProgress | None = None,
        on_embedded: OnEmbeddingProgress | None = None,
    ) -> Operation[DatasetView]:
        """Upload rows: JSON Lines, a JSON list or Parquet. Images that rows name by paths beside the file are sent
        inside. ``reuse``: the same bytes, uploaded before, are not sent again. A file of more than ``part_bytes`` goes
        in parts, several at once; the same call after a break, also of another process, sends only those that are
        missing. ``on_progress`` is called from other threads, as bytes leave; ``on_embedded`` before, as images are
        put inside.

        Raises InvalidRows for images that are not there, InvalidRequest whose ``errors`` name the bad rows.
        """
        return run_blocking(
            lambda transport, stop: upload(
                Path(path),
                transport=transport,
                name=name,
                expires_at=expires_at,
                reuse=reuse,
                part_bytes=part_bytes,
                parallel=parallel,
                on_progress=on_progress,
                on_embedded=on_embedded,
                stop=stop,
            )
        )

    @operation
    def get(self, dataset_id: str) -> Operation[DatasetView]:
        return self._send(requests.get_dataset(dataset_id))

    @listing
    def list(self, *, sha256: str | None = None) -> Stream[DatasetView]:
        return self._pages(requests.list_datasets(sha256=sha256))

    @listing
    def rows(self, dataset_id: str, *, after: int = 0) -> Stream[RowView]:
        """Its rows as they were uploaded, with their images and audio set apart; fetched as they are needed."""
        while True:
            page = yield from self._send(requests.dataset_rows(dataset_id, after=after))
            for row in page.data:
                yield Item(row)
            if not page.has_more:
                return
            after = page.next_after

    @operation
    def image(self, dataset_id: str, row: int, index: int) -> Operation[bytes]:
        """One image of a row, as it was uploaded."""
        return self._send(requests.dataset_image(dataset_id, row, index))

    @operation
    def audio(self, dataset_id: str, row: int, index: int) -> Operation[bytes]:
        """One audio file of a row, as it was uploaded."""
        return self._send(requests.dataset_audio(dataset_id, row, index))

    @operation
    def statistics(
        self, dataset_id: str, *, model: str | None = None, revision: str | None = None
    ) -> Operation[FiguresView]:
        """How many rows, images and sounds, how large, how long, and how many tokens: those of ``model``, a hub id or
        ``local/<directory>`` of the service, else an estimate.

        Raises InvalidRequest for a model that cannot be read.
        """
        return self._send(requests.dataset_statistics(dataset_id, model=model, revision=revision))

    @operation
    def change(self, dataset_id: str, *, expires_at: datetime | None) -> Operation[DatasetView]:
        """Say when it expires; None: it stays until it is deleted."""
        return self._send(requests.change_dataset(dataset_id, expires_at=expires_at))

    @operation
    def delete(self, dataset_id: str) -> Operation[None]:
        """Raises Conflict while a job needs it."""
        return self._send(requests.delete_dataset(dataset_id))


class Datasets(Blocking, DatasetOperations):
    pass


class AsyncDatasets(Awaited, DatasetOperations):
    pass
