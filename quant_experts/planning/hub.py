"""The headers of a hub model, by ranged reads at a pinned commit: some hundred kilobytes of a 145 GB repository."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

from quant_experts.planning.errors import HubUnavailable, Unreadable
from quant_experts.planning.headers import (
    LARGEST_JSON,
    MOST_SHARDS,
    PIECE,
    ModelHeaders,
    assemble,
    check_header_bytes,
    header_length,
    listed,
)
from quant_experts.planning.text_files import LARGEST_TOKENIZER, TextFiles, gather

Kind = Literal["model", "dataset"]

FIRST_READ = 128 * 1024
"""Bytes of a shard that are asked for at once: nearly every header is shorter."""
PARALLEL = 8
PARTIAL = 206


class HubFiles:
    """The files of a hub model as bytes, at the commit that ``revision`` points to now; what is in them is the caller's
    to read. Methods raise Unreadable and HubUnavailable."""

    def __init__(
        self, repository: str, *, revision: str | None, token: str | None, endpoint: str | None, seconds: float
    ) -> None:
        self._reader = _Reader(repository, token, endpoint, seconds)
        self.commit, self.names = self._reader.resolve("model", revision)
        self._reader.commit = self.commit
        self._headers: dict[str, Future[bytes]] = {}
        self._bytes_read = 0

    def whole(self, name: str) -> bytes:
        return self._reader.whole(listed(self.names, name))

    def tokenizer(self, name: str) -> bytes:
        return self._reader.whole(listed(self.names, name), most=LARGEST_TOKENIZER)

    def headers(self, names: list[str]) -> bytes:
        """Have them read together; ``header`` then has each."""
        shards = [listed(self.names, name) for name in names[:MOST_SHARDS]]
        with ThreadPoolExecutor(PARALLEL) as pool:
            self._headers = {name: pool.submit(self._reader.header, name) for name in shards}
        return b""

    def header(self, name: str) -> bytes:
        header = (
            self._headers.pop(name).result() if name in self._headers else self._reader.header(listed(self.names, name))
        )
        self._bytes_read += len(header)
        check_header_bytes(self._bytes_read)
        return header

    def range(self, name: str, start: int, size: int) -> bytes:
        return self._reader.range(listed(self.names, name), max(0, start), min(size, PIECE))


def read_hub(
    repository: str, *, revision: str | None, token: str | None, endpoint: str | None = None, seconds: float = 20.0
) -> ModelHeaders:
    """The headers of ``repository`` at the commit that ``revision`` points to now.

    ``seconds``: for all of it together. Raises Unreadable for a repository that is not there or not readable,
    HubUnavailable when the hub does not answer in time.
    """
    reader = _Reader(repository, token, endpoint, seconds)
    commit, names = reader.resolve("model", revision)
    reader.commit = commit

    def read_headers(shards: list[str]) -> Mapping[str, bytes]:
        with ThreadPoolExecutor(PARALLEL) as pool:
            headers = list(pool.map(reader.header, shards))
        check_header_bytes(sum(map(len, headers)))
        return dict(zip(shards, headers, strict=True))

    return assemble(names, read_whole=reader.whole, read_headers=read_headers, read_range=reader.range, commit=commit)


def read_hub_text(
    repository: str, *, revision: str | None, token: str | None, endpoint: str | None = None, seconds: float = 20.0
) -> TextFiles:
    """What says how rows become tokens, at the commit that ``revision`` points to now. Raises as ``read_hub``."""
    reader = _Reader(repository, token, endpoint, seconds)
    reader.commit, names = reader.resolve("model", revision)
    read_tokenizer = partial(reader.whole, most=LARGEST_TOKENIZER)
    return gather(names, read_whole=reader.whole, read_tokenizer=read_tokenizer, commit=reader.commit)


def resolve_dataset(repository: str, *, token: str | None, endpoint: str | None = None, seconds: float = 10.0) -> str:
    """The commit that the dataset's default branch points to now. Raises as ``read_hub`` does."""
    return _Reader(repository, token, endpoint, seconds).resolve("dataset", None)[0]


class _Reader:
    """Bounded reads of one repository, all before one deadline."""

    def __init__(self, repository: str, token: str | None, endpoint: str | None, seconds: float) -> None:
        self.repository = repository
        self.commit = ""
        self._token: str | bool = token or False
        self._endpoint = endpoint
        self._deadline = time.monotonic() + seconds

    def resolve(self, kind: Kind, revision: str | None) -> tuple[str, list[str]]:
        from huggingface_hub import HfApi

        where = f"{kind} {self.repository!r}" + (f" at {revision!r}" if revision else "")
        try:
            api = HfApi(endpoint=self._endpoint, token=self._token)
            info = api.repo_info(self.repository, repo_type=kind, revision=revision, timeout=self._left())
        except Exception as error:
            raise _explained(kind, where, error) from error
        if not info.sha:
            raise HubUnavailable(f"the hub names no commit for {where}")
        return str(info.sha), [file.rfilename for file in getattr(info, "siblings", None) or []]

    def whole(self, name: str, *, most: int = LARGEST_JSON) -> bytes:
        data = self._read(name, most + 1)
        if len(data) > most:
            raise Unreadable("invalid_model", f"{name} is larger than {most} bytes")
        return data

    def header(self, name: str) -> bytes:
        data = self._read(name, FIRST_READ)
        size = 8 + header_length(name, data)
        if len(data) < size:
            data = self._read(name, size)
        if len(data) < size:
            raise Unreadable("invalid_model", f"{name}: truncated within its header")
        return data[8:size]

    def range(self, name: str, start: int, size: int) -> bytes:
        return self._read(name, size, start)

    def _read(self, name: str, size: int, start: int = 0) -> bytes:
        """``size`` bytes from ``start``; not many more, also of a server that knows no ranges."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        url = hf_hub_url(self.repository, name, revision=self.commit, endpoint=self._endpoint)
        headers = {
            **build_hf_headers(token=self._token),
            "Range": f"bytes={start}-{start + size - 1}",
            "Accept-Encoding": "identity",
        }
        data = bytearray()
        try:
            with get_session().stream("GET", url, headers=headers, timeout=self._left()) as response:
                hf_raise_for_status(response)
                if start and response.status_code != PARTIAL:
                    raise HubUnavailable(f"the hub does not send parts of {name} of {self.repository!r}")
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) >= size:
                        break
                    self._left()
        except (HubUnavailable, Unreadable):
            raise
        except Exception as error:
            raise _explained("model", f"model {self.repository!r}", error) from error
        return bytes(data[:size])

    def _left(self) -> float:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise HubUnavailable(f"the hub took too long over {self.repository!r}: try again later")
        return seconds


def _explained(kind: Kind, where: str, error: Exception) -> Exception:
    """The failure in our words; one that the hub has no part in is handed back as it is."""
    from huggingface_hub import errors

    pointer = "/model/id" if kind == "model" else "/calibration/dataset"
    code = f"{kind}_not_found"
    match error:
        case HubUnavailable() | Unreadable():
            return error
        case errors.GatedRepoError():
            message = f"{where} is gated: accept its terms on the hub and set a token that may read it"
        case errors.RepositoryNotFoundError():
            message = f"{where} is not on the hub, or is private and the token does not open it"
        case errors.RevisionNotFoundError():
            message, pointer = f"{where}: there is no such branch, tag or commit", "/model/revision"
        case errors.HFValidationError():
            message = f"{where} is not a valid repository id: write owner/name"
        case _:
            outside = isinstance(error, OSError | errors.HfHubHTTPError) or _is_of_the_client(error)
            return (
                HubUnavailable(f"{where} could not be read from the hub ({type(error).__name__})") if outside else error
            )
    return Unreadable(code, message, pointer)


def _is_of_the_client(error: Any) -> bool:
    """httpx's errors, whichever major version of the hub client brought them."""
    return type(error).__module__.split(".")[0] in {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}
