"""Download a job's files: several at once, resumed after a break, each verified by its digest and then renamed.

What has arrived of a file lies in ``.quant-experts/<sha256>.part`` beside the files, under the digest of the whole: a
later call, also of another process, goes on from there, and a file that changed its name or job is the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import httpx

from quant_experts.client.errors import ClientError, ConnectionFailed, DigestMismatch, Stopped, error_of
from quant_experts.client.file_lock import locked_file
from quant_experts.client.retries import RetryPolicy
from quant_experts.client.threads import run_parallel
from quant_experts.client.views.jobs import ArtifactView

PARTS = ".quant-experts"
CHUNK = 1 << 20
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
RESERVED = frozenset('<>:"|?*\\') | {chr(code) for code in range(32)}


@dataclass(frozen=True)
class DownloadProgress:
    """Progress of a download. Files that exist already count as done."""

    name: str
    """The file that received bytes or was completed."""
    done: int
    total: int
    """Bytes of all files together."""
    files_done: int
    files: int


OnProgress = Callable[[DownloadProgress], None]
OpenFile = Callable[[str, Mapping[str, str]], AbstractContextManager[httpx.Response]]
"""Opens the download of an artifact by name, with these request headers."""


def pull(
    artifacts: Sequence[ArtifactView],
    directory: Path,
    *,
    folder: str = "",
    open_file: OpenFile,
    policy: RetryPolicy,
    parallel: int,
    on_progress: OnProgress | None,
    stop: threading.Event | None = None,
) -> list[Path]:
    """Every artifact below ``directory``, in their order, without ``folder`` at the beginning of their names. The first
    error ends all; parts stay for the next call.
    ``stop``: set by whoever wants it to end early.

    Raises ApiError, ConnectionFailed, DigestMismatch, or ClientError for a name that leads out of the directory.
    """
    targets = [target_of(directory, artifact.name.removeprefix(folder)) for artifact in artifacts]
    (directory / PARTS).mkdir(parents=True, exist_ok=True)
    tally = _Tally(artifacts, on_progress)
    stop = stop or threading.Event()
    largest_first = sorted(zip(artifacts, targets, strict=True), key=lambda pair: -pair[0].bytes)

    def bring(pair: tuple[ArtifactView, Path], over: threading.Event) -> None:
        try:
            _bring(*pair, directory / PARTS, open_file, policy, tally, over)
        except OSError as error:
            error.filename = error.filename or str(pair[1])  # a full disk names no file
            raise

    run_parallel(bring, largest_first, parallel=parallel, stop=stop, name="pull")
    with contextlib.suppress(OSError):  # parts of another download
        (directory / PARTS).rmdir()
    return targets


def chosen(
    artifacts: Sequence[ArtifactView], names: Sequence[str] | None, job_id: str, *, folder: str = ""
) -> list[ArtifactView]:
    """The artifacts of ``names``, or all; with ``folder`` those in it. Raises ClientError for an unknown name, or when
    there are none."""
    if not artifacts:
        raise ClientError(f"{job_id} has no files: they appear all at once when a job has succeeded")
    missing = sorted(set(names or ()) - {artifact.name for artifact in artifacts})
    if missing:
        raise ClientError(f"{job_id} has no file {missing[0]!r}")
    inside = [artifact for artifact in artifacts if artifact.name.startswith(folder)]
    if not inside:
        raise ClientError(f"{job_id} has no files in {folder}: its summary says what came of its exports")
    return [artifact for artifact in inside if names is None or artifact.name in names]


def target_of(directory: Path, name: str) -> Path:
    """The local path of an artifact. Raises ClientError for a name that is not a plain relative path."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and all(part not in ("..", ".", PARTS) and not RESERVED & set(part) for part in parts)
    if not plain or name.startswith("/") or "/".join(parts) != name:
        raise ClientError(f"the service names a file {name!r}, which is not a plain relative path: nothing is written")
    return directory.joinpath(*parts)


class _Tally:
    """Counts bytes of all threads. It calls ``on_progress`` from one thread at a time."""

    def __init__(self, artifacts: Sequence[ArtifactView], on_progress: OnProgress | None) -> None:
        self._lock = threading.Lock()
        self._on_progress = on_progress
        self._total = sum(artifact.bytes for artifact in artifacts)
        self._files = len(artifacts)
        self._received = 0
        self._whole = 0

    def add(self, name: str, count: int, *, whole: bool = False) -> None:
        """``count`` may be negative: bytes that were discarded."""
        with self._lock:
            self._received += count
            self._whole += whole
            if self._on_progress is not None:
                self._on_progress(DownloadProgress(name, self._received, self._total, self._whole, self._files))


def _bring(
    artifact: ArtifactView,
    target: Path,
    parts: Path,
    open_file: OpenFile,
    policy: RetryPolicy,
    tally: _Tally,
    stop: threading.Event,
) -> None:
    part = parts / f"{artifact.sha256}.part"
    mismatches = 0
    while not _is_whole(target, artifact, stop):
        with locked_file(part, stop) as file:
            if _is_whole(target, artifact, stop):  # another call has completed it
                part.unlink()
                break
            digest = _receive(artifact, file, open_file, policy, tally, stop)
            if digest != artifact.sha256:
                part.unlink()
                tally.add(artifact.name, -artifact.bytes)
                mismatches += 1
                if mismatches == 2:
                    raise DigestMismatch(
                        f"{artifact.name}: sha256 is {digest}, the service announced {artifact.sha256}"
                    )
                continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.replace(target)
        except FileNotFoundError:  # another call with the same artifact has renamed it
            tally.add(artifact.name, -artifact.bytes)
            continue
        tally.add(artifact.name, 0, whole=True)
        return
    tally.add(artifact.name, artifact.bytes, whole=True)


def _is_whole(target: Path, artifact: ArtifactView, stop: threading.Event) -> bool:
    return target.is_file() and target.stat().st_size == artifact.bytes and _digest(target, stop) == artifact.sha256


def _receive(
    artifact: ArtifactView,
    file: BinaryIO,
    open_file: OpenFile,
    policy: RetryPolicy,
    tally: _Tally,
    stop: threading.Event,
) -> str:
    """Download the rest of the artifact into ``file``, with retries; returns the digest of the file."""
    digest = hashlib.sha256()
    for chunk in _chunks(file, stop, most=artifact.bytes):
        digest.update(chunk)
    tally.add(artifact.name, file.tell())
    failures = 0
    while file.tell() < artifact.bytes:
        before = file.tell()
        failure: Exception | None = None
        try:
            with open_file(artifact.name, _range_from(before)) as response:
                if not _continues(response, before):
                    tally.add(artifact.name, -before)
                    file.seek(0)
                    digest = hashlib.sha256()
                # In pieces as they arrive: an incomplete chunk would be lost with the connection.
                for chunk in response.iter_raw():
                    if stop.is_set():
                        raise Stopped(artifact.name)
                    chunk = chunk[: artifact.bytes - file.tell()]
                    file.write(chunk)
                    digest.update(chunk)
                    tally.add(artifact.name, len(chunk))
        except (httpx.RequestError, ClientError) as error:
            failure = error
        failures = 0 if file.tell() > before else failures + 1
        if file.tell() < artifact.bytes:
            _pause(artifact.name, failure, failures, policy, stop)
    file.truncate()
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _range_from(start: int) -> dict[str, str]:
    """No compression: digest and length are those of the file."""
    return {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}


def _continues(response: httpx.Response, start: int) -> bool:
    """Whether the body begins at ``start``; False: it is the whole file. Raises ApiError or ConnectionFailed."""
    if response.status_code == 206:
        match = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match[1]) != start:
            raise ConnectionFailed(f"asked for bytes from {start}, sent were {response.headers.get('content-range')}")
        return True
    if not response.is_success:
        response.read()
        error = error_of(response)
        assert error is not None
        raise error
    return start == 0


def _pause(name: str, failure: Exception | None, failures: int, policy: RetryPolicy, stop: threading.Event) -> None:
    """Wait before the next connection. Raises ``failure`` when there is none."""
    error = failure or httpx.RemoteProtocolError("the connection ended before the file did")
    seconds = policy.pause(error, attempt=max(0, failures - 1), repeatable=True)
    if seconds is None:
        if isinstance(error, httpx.RequestError):
            raise ConnectionFailed(
                f"{name}: {str(error) or type(error).__name__}, {failures} times in a row"
            ) from error
        raise error
    if stop.wait(seconds):
        raise Stopped(name)


def _digest(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file, stop):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO, stop: threading.Event, *, most: int | None = None) -> Iterator[bytes]:
    """The digest of the first ``most`` bytes; the position of the file is then behind them."""
    while most is None or file.tell() < most:
        chunk = file.read(CHUNK if most is None else min(CHUNK, most - file.tell()))
        if not chunk:
            return
        if stop.is_set():
            raise Stopped(file.name)
        yield chunk
