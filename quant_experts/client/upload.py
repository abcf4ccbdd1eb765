"""Sending a file of rows: small ones at once, large ones in parts that are sent again one by one.

Which upload a large file was begun under is kept in the state directory (``$XDG_STATE_HOME/quant-experts/uploads``)
under the digests of service and file, until it is complete: the same file goes on where it was cut, by any process.
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
from typing import TYPE_CHECKING

from quant_experts.client import calls
from quant_experts.client.configuration import of_the_user
from quant_experts.client.download import CHUNK
from quant_experts.client.embedding import OnEmbedded, with_images_inside
from quant_experts.client.errors import LOST_ANSWER, ClientError, NotFound, Stopped
from quant_experts.client.parallel import each
from quant_experts.client.sending import OnSent, Progress
from quant_experts.client.views import DatasetView, UploadView

if TYPE_CHECKING:
    from quant_experts.client.synchronous import BlockingTransport

PART_BYTES = 16 << 20
TRIES = 3
"""How often a file is sent in full before its upload is given up."""


@dataclass(frozen=True)
class Part:
    number: int
    start: int
    bytes: int


def upload(
    path: Path,
    *,
    transport: BlockingTransport,
    name: str | None,
    expires_at: datetime | None,
    reuse: bool,
    part_bytes: int,
    parallel: int,
    on_progress: OnSent | None,
    on_embedded: OnEmbedded | None,
    stop: threading.Event,
) -> DatasetView:
    """Images that rows name by their paths are sent inside. Raises ApiError, ConnectionFailed, InvalidRows, or
    ClientError for a file that cannot be read twice, that changed meanwhile or has too many parts."""
    if path.exists() and not path.is_file():
        raise ClientError(f"{path} is no regular file: its digest is sent before its content, so that it is read twice")
    with with_images_inside(path, on_progress=on_embedded, stop=stop) as whole:
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
    transport: BlockingTransport,
    name: str,
    expires_at: datetime | None,
    reuse: bool,
    part_bytes: int,
    parallel: int,
    on_progress: OnSent | None,
    stop: threading.Event,
) -> DatasetView:
    size, sha256 = path.stat().st_size, _digest(path, stop)
    if reuse and (known := _known(transport, sha256)) is not None:
        return known
    progress = Progress(size, on_progress)
    if size <= part_bytes:
        return _at_once(transport, path, name=name, expires_at=expires_at, sha256=sha256, progress=progress)
    kept = kept_at(transport.access.url, sha256)
    for left in reversed(range(TRIES)):
        begun = _begun(transport, kept, name)
        parts = _cut(size, part_bytes, begun)
        if any(part.number > len(parts) for part in begun.parts):
            # Begun in smaller parts, which would stay at its end.
            transport.send(calls.abort_upload(begun.id))
            begun = _begun(transport, kept, name)
        all_sent = False
        try:
            _send_parts(transport, path, begun, parts, parallel=parallel, progress=progress, stop=stop)
            all_sent = True
            dataset = transport.send(calls.complete_upload(begun.id, sha256, expires_at=expires_at))
        except (*LOST_ANSWER, NotFound) as error:
            if not all_sent and not isinstance(error, NotFound):
                raise
            # It may have become a dataset all the same, also by another call that went on with it; then it is gone.
            known = _known(transport, sha256)
            if known is None:
                if not left:
                    raise
                if isinstance(error, NotFound):
                    kept.unlink(missing_ok=True)
                    progress.lost()
                continue
            dataset = known
        kept.unlink(missing_ok=True)
        return dataset
    raise AssertionError("not reached")


def kept_at(url: str, sha256: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Where the id of an unfinished upload is kept."""
    name = hashlib.sha256(f"{url} {sha256}".encode()).hexdigest()
    return of_the_user("XDG_STATE_HOME", ".local/state", environment) / "uploads" / name


def _known(transport: BlockingTransport, sha256: str) -> DatasetView | None:
    found = transport.send(calls.list_datasets(sha256=sha256)).data
    return next((dataset for dataset in found if dataset.status == "ready"), None)


def _at_once(
    transport: BlockingTransport,
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

    def moved(sent: int) -> None:
        # The form around the file is sent too.
        progress.moved(1, min(sent, len(content)))

    call = replace(calls.upload(name, content, expires_at=expires_at), on_sent=moved)
    for left in reversed(range(TRIES)):
        try:
            dataset = transport.send(call)
        except LOST_ANSWER:
            # It may have arrived all the same: look before all of it is sent again.
            known = _known(transport, sha256)
            if known is None:
                if not left:
                    raise
                continue
            dataset = known
        progress.finished(1, len(content))
        return dataset
    raise AssertionError("not reached")


def _begun(transport: BlockingTransport, kept: Path, name: str) -> UploadView:
    """The upload that was begun before and has not expired, or a new one."""
    with contextlib.suppress(OSError, NotFound):
        return transport.send(calls.get_upload(kept.read_text().strip()))
    begun = transport.send(calls.begin_upload(name=name[:120]))
    with contextlib.suppress(OSError):  # a home that cannot be written: then a break costs what was sent
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(begun.id)
    return begun


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
    transport: BlockingTransport,
    path: Path,
    begun: UploadView,
    parts: list[Part],
    *,
    parallel: int,
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Those that the service has not, or has otherwise. The first error ends all; what has arrived stays."""
    there = {part.number: part.sha256 for part in begun.parts}
    progress.begin(len(parts))

    def send(part: Part, _: threading.Event) -> None:
        with path.open("rb") as file:
            file.seek(part.start)
            content = file.read(part.bytes)
        if len(content) < part.bytes:
            raise ClientError(f"{path.name} became shorter while it was sent")
        if there.get(part.number) != hashlib.sha256(content).hexdigest():
            call = calls.put_part(begun.id, part.number, content)
            transport.send(replace(call, on_sent=partial(progress.moved, part.number)))
        progress.finished(part.number, part.bytes)

    each(send, parts, parallel=parallel, stop=stop, name="upload")


def _digest(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if stop.is_set():
                raise Stopped(path.name)
            digest.update(chunk)
    return digest.hexdigest()
