"""Bringing a job's files: several at once, resumed where they broke, each checked against its digest and then renamed.

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
from quant_experts.client.exclusive import to_oneself
from quant_experts.client.parallel import each
from quant_experts.client.retrying import RetryPolicy
from quant_experts.client.views import ArtifactView

PARTS = ".quant-experts"
CHUNK = 1 << 20
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
RESERVED = frozenset('<>:"|?*\\') | {chr(code) for code in range(32)}


@dataclass(frozen=True)
class Transferred:
    """How far a download is; what lay there already counts as done."""

    name: str
    """The file of which bytes just arrived, or which just became whole."""
    done: int
    total: int
    """Bytes of all files together."""
    files_done: int
    files: int


OnProgress = Callable[[Transferred], None]
OpenFile = Callable[[str, Mapping[str, str]], AbstractContextManager[httpx.Response]]
"""Starts the download of one artifact by name, with these request headers."""


def pull(
    artifacts: Sequence[ArtifactView],
    directory: Path,
    *,
    open_file: OpenFile,
    policy: RetryPolicy,
    parallel: int,
    on_progress: OnProgress | None,
    stop: threading.Event | None = None,
) -> list[Path]:
    """Every artifact below ``directory``, in their order. The first error ends all; parts stay for the next call.
    ``stop``: set by whoever wants it to end early.

    Raises ApiError, ConnectionFailed, DigestMismatch, or ClientError for a name that leads out of the directory.
    """
    targets = [target_of(directory, artifact.name) for artifact in artifacts]
    (directory / PARTS).mkdir(parents=True, exist_ok=True)
    tally = _Tally(artifacts, on_progress)
    stop = stop or threading.Event()
    largest_first = sorted(zip(artifacts, targets, strict=True), key=lambda pair: -pair[0].bytes)

    def bring(pair: tuple[ArtifactView, Path], over: threading.Event) -> None:
        try:
            _bring(*pair, directory / PARTS, open_file, policy, tally, over)
        except OSError as error:
            error.filename = error.filename or str(pair[1])  # a disk that is full does not say whose
            raise

    each(bring, largest_first, parallel=parallel, stop=stop, name="pull")
    with contextlib.suppress(OSError):  # parts of another download
        (directory / PARTS).rmdir()
    return targets


def chosen(artifacts: Sequence[ArtifactView], names: Sequence[str] | None, job_id: str) -> list[ArtifactView]:
    """Those of ``names``, or all. Raises ClientError for a name that is not among them, or when there are none."""
    if not artifacts:
        raise ClientError(f"{job_id} has no files: they appear all at once when a job has succeeded")
    missing = sorted(set(names or ()) - {artifact.name for artifact in artifacts})
    if missing:
        raise ClientError(f"{job_id} has no file {missing[0]!r}")
    return [artifact for artifact in artifacts if names is None or artifact.name in names]


def target_of(directory: Path, name: str) -> Path:
    """Where a file of this name goes. Raises ClientError for a name that is not a plain relative path."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and all(part not in ("..", ".", PARTS) and not RESERVED & set(part) for part in parts)
    if not plain or name.startswith("/") or "/".join(parts) != name:
        raise ClientError(f"the service names a file {name!r}, which is no plain relative path: nothing is written")
    return directory.joinpath(*parts)


class _Tally:
    """Counts for all threads and calls back one at a time."""

    def __init__(self, artifacts: Sequence[ArtifactView], on_progress: OnProgress | None) -> None:
        self._lock = threading.Lock()
        self._on_progress = on_progress
        self._total = sum(artifact.bytes for artifact in artifacts)
        self._files = len(artifacts)
        self._done = 0
        self._whole = 0

    def add(self, name: str, count: int, *, whole: bool = False) -> None:
        """``count`` may be negative: bytes that turned out to be worth nothing."""
        with self._lock:
            self._done += count
            self._whole += whole
            if self._on_progress is not None:
                self._on_progress(Transferred(name, self._done, self._total, self._whole, self._files))


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
        with to_oneself(part, stop) as file:
            if _is_whole(target, artifact, stop):  # another call was faster
                part.unlink()
                break
            found = _receive(artifact, file, open_file, policy, tally, stop)
            if found != artifact.sha256:
                part.unlink()
                tally.add(artifact.name, -artifact.bytes)
                mismatches += 1
                if mismatches == 2:
                    raise DigestMismatch(f"{artifact.name}: sha256 is {found}, announced was {artifact.sha256}")
                continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.replace(target)
        except FileNotFoundError:  # it was of the same bytes for another call, which took it first
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
    """Make ``file`` as long as the artifact, over as many connections as it takes; the digest of what is in it."""
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
                # As it comes: what waits until a chunk is full is lost with the connection.
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
    """Not compressed: the digest and the length are of the file itself."""
    return {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}


def _continues(response: httpx.Response, start: int) -> bool:
    """Do the bytes begin at ``start``? False: they are the whole file. Raises ApiError or ConnectionFailed."""
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
    """Wait before the next connection, or raise why there is none."""
    cut = failure or httpx.RemoteProtocolError("the connection ended before the file did")
    seconds = policy.pause(cut, attempt=max(0, failures - 1), repeatable=True)
    if seconds is None:
        if isinstance(cut, httpx.RequestError):
            raise ConnectionFailed(f"{name}: {str(cut) or type(cut).__name__}, {failures} times in a row") from cut
        raise cut
    if stop.wait(seconds):
        raise Stopped(name)


def _digest(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file, stop):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO, stop: threading.Event, *, most: int | None = None) -> Iterator[bytes]:
    """The file from its beginning, not beyond ``most`` bytes; its position is then behind what was read."""
    while most is None or file.tell() < most:
        chunk = file.read(CHUNK if most is None else min(CHUNK, most - file.tell()))
        if not chunk:
            return
        if stop.is_set():
            raise Stopped(file.name)
        yield chunk
