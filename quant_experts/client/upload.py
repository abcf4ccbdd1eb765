"""Upload a file of rows: a small one in one request, a large one in parts that are retried one by one.

The id of an unfinished upload is stored in the state directory (``$XDG_STATE_HOME/quant-experts/uploads``), in a file
named by a digest of service and file. So any process can resume the upload of the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from quant_experts.client.configuration import of_the_user
from quant_experts.client.download import CHUNK
from quant_experts.client.effects import FileTransport
from quant_experts.client.embedded_images import OnEmbeddingProgress, embed_images
from quant_experts.client.errors import LOST_ANSWER, ClientError, NotFound, Stopped
from quant_experts.client.requests import datasets as requests
from quant_experts.client.threads import run_parallel
from quant_experts.client.upload_progress import OnUploadProgress, Progress
from quant_experts.client.views.datasets import DatasetView, UploadView

PART_BYTES = 16 << 20
TRIES = 3
"""Attempts to send a whole file."""


@dataclass(frozen=True)
class Part:
    number: int
    start: int
    bytes: int


def upload(
    path: Path,
    *,
    transport: FileTransport,
    name: str | None,
    expires_at: datetime | None,
    reuse: bool,
    part_bytes: int,
    parallel: int,
    on_progress: OnUploadProgress | None,
    on_embedded: OnEmbeddingProgress | None,
    stop: threading.Event,
) -> DatasetView:
    """Images that rows name by their paths are sent inside. Raises ApiError, ConnectionFailed, InvalidRows, or
    ClientError for a file that cannot be read twice, that changed meanwhile or has too many parts."""
    if path.exists() and not path.is_file():
        raise ClientError(
            f"{path} is not a regular file: it is read twice, because its digest is sent before its content"
        )
    with embed_images(path, on_progress=on_embedded, stop=stop) as whole:
        return _upload(
            whole,
            transport=transport,
            name=name or path.name,
            expires_at=expires_at,
            reuse=reuse,
            part_bytes=part_bytes,
            parallel=parallel,
            on_progress=on_progress,
            stop=stop,
        )


def _upload(
    path: Path,
    *,
    transport: FileTransport,
    name: str,
    expires_at: datetime | None,
    reuse: bool,
    part_bytes: int,
    parallel: int,
    on_progress: OnUploadProgress | None,
    stop: threading.Event,
) -> DatasetView:
    size, sha256 = path.stat().st_size, _digest(path, stop)
    if reuse and (there := _known(transport, sha256)) is not None:
        return there
    progress = Progress(size, on_progress)
    if size <= part_bytes:
        return _send_whole(transport, path, name=name, expires_at=expires_at, sha256=sha256, progress=progress)
    resume = resume_file(transport.access.url, sha256)
    for tries_left in reversed(range(TRIES)):
        upload = _resumed(transport, resume, name)
        parts = _cut(size, part_bytes, upload)
        if any(part.number > len(parts) for part in upload.parts):
            # It was begun with smaller parts, of which some would remain.
            transport.send(requests.abort_upload(upload.id))
            upload = _resumed(transport, resume, name)
        is_complete = False
        try:
            _send_parts(transport, path, upload, parts, parallel=parallel, progress=progress, stop=stop)
            is_complete = True
            dataset = transport.send(requests.complete_upload(upload.id, sha256, expires_at=expires_at))
        except (*LOST_ANSWER, NotFound) as error:
            if not is_complete and not isinstance(error, NotFound):
                raise
            # It may be complete all the same, perhaps by another call; a completed upload does not exist any more.
            there = _known(transport, sha256)
            if there is None:
                if not tries_left:
                    raise
                if isinstance(error, NotFound):
                    resume.unlink(missing_ok=True)
                    progress.lost()
                continue
            dataset = there
        resume.unlink(missing_ok=True)
        return dataset
    raise AssertionError("not reached")


def resume_file(url: str, sha256: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Where the id of an unfinished upload is resume."""
    name = hashlib.sha256(f"{url} {sha256}".encode()).hexdigest()
    return of_the_user("XDG_STATE_HOME", ".local/state", environment) / "uploads" / name


def _known(transport: FileTransport, sha256: str) -> DatasetView | None:
    datasets = transport.send(requests.list_datasets(sha256=sha256)).data
    return next((dataset for dataset in datasets if dataset.status == "ready"), None)


def _send_whole(
    transport: FileTransport,
    path: Path,
    *,
    name: str,
    expires_at: datetime | None,
    sha256: str,
    progress: Progress,
) -> DatasetView:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ClientError(f"{path.name} changed while it was sent")
    progress.begin(1)

    def moved(count: int) -> None:
        # The count includes the form around the file.
        progress.moved(1, min(count, len(content)))

    request = replace(requests.upload(name, content, expires_at=expires_at), on_sent=moved)
    for tries_left in reversed(range(TRIES)):
        try:
            dataset = transport.send(request)
        except LOST_ANSWER:
            # It may have arrived: check before sending it again.
            there = _known(transport, sha256)
            if there is None:
                if not tries_left:
                    raise
                continue
            dataset = there
        progress.finished(1, len(content))
        return dataset
    raise AssertionError("not reached")


def _resumed(transport: FileTransport, resume: Path, name: str) -> UploadView:
    """The unfinished upload of an earlier call, or a new one."""
    with contextlib.suppress(OSError, NotFound):
        return transport.send(requests.get_upload(resume.read_text().strip()))
    upload = transport.send(requests.begin_upload(name=name[:120]))
    with contextlib.suppress(OSError):  # without a writable home an interrupted upload starts from zero
        resume.parent.mkdir(parents=True, exist_ok=True)
        resume.write_text(upload.id)
    return upload


def _cut(size: int, part_bytes: int, limits: UploadView) -> list[Part]:
    """Raises ClientError for a file that is larger than the service takes."""
    if size > limits.most_bytes:
        raise ClientError(f"the file has {size:,} bytes, the service takes {limits.most_bytes:,}")
    part_bytes = max(1, min(limits.most_part_bytes, max(part_bytes, -(-size // limits.most_parts))))
    starts = range(0, size, part_bytes)
    if len(starts) > limits.most_parts:
        most = limits.most_parts * limits.most_part_bytes
        raise ClientError(f"the file has {size:,} bytes, an upload in parts has at most {most:,}")
    return [Part(number, start, min(part_bytes, size - start)) for number, start in enumerate(starts, 1)]


def _send_parts(
    transport: FileTransport,
    path: Path,
    upload: UploadView,
    parts: list[Part],
    *,
    parallel: int,
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Send the parts that the service lacks or has with another digest. The first error ends all."""
    there = {part.number: part.sha256 for part in upload.parts}
    progress.begin(len(parts))

    def send(part: Part, _: threading.Event) -> None:
        with path.open("rb") as file:
            file.seek(part.start)
            content = file.read(part.bytes)
        if len(content) < part.bytes:
            raise ClientError(f"{path.name} became shorter while it was sent")
        if there.get(part.number) != hashlib.sha256(content).hexdigest():
            request = requests.put_part(upload.id, part.number, content)
            transport.send(replace(request, on_sent=partial(progress.moved, part.number)))
        progress.finished(part.number, part.bytes)

    run_parallel(send, parts, parallel=parallel, stop=stop, name="upload")


def _digest(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if stop.is_set():
                raise Stopped(path.name)
            digest.update(chunk)
    return digest.hexdigest()
