"""The headers of a model directory. Of a shard only its first bytes are read, so that a sparse file does as well."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from quant_experts.planning.errors import Unreadable
from quant_experts.planning.headers import (
    LARGEST_JSON,
    PIECE,
    ModelHeaders,
    assemble,
    check_header_bytes,
    header_length,
    listed,
)
from quant_experts.planning.text_files import LARGEST_TOKENIZER, TextFiles, gather


class LocalFiles:
    """A model's files as bytes, as ``quant_experts.planning.hub.HubFiles``. Methods raise Unreadable and OSError."""

    commit: str | None = None

    def __init__(self, directory: Path) -> None:
        """Raises Unreadable."""
        if not directory.is_dir():
            raise Unreadable("model_not_found", f"{directory.name} is not a directory")
        self._directory = directory
        self._bytes_read = 0
        self.names = _names(directory)

    @property
    def stamp(self) -> str:
        """Another one when a file has changed, as far as the file system says."""
        files = ((name, (self._directory / name).stat()) for name in sorted(self.names))
        return " ".join(f"{name}:{about.st_size}:{about.st_mtime_ns}" for name, about in files)

    def whole(self, name: str) -> bytes:
        return _whole(self._directory, listed(self.names, name))

    def tokenizer(self, name: str) -> bytes:
        return _whole(self._directory, listed(self.names, name), most=LARGEST_TOKENIZER)

    def headers(self, names: list[str]) -> bytes:
        """``header`` will be asked for these."""
        return b""

    def header(self, name: str) -> bytes:
        header = _header(self._directory / listed(self.names, name))
        self._bytes_read += len(header)
        check_header_bytes(self._bytes_read)
        return header

    def range(self, name: str, start: int, size: int) -> bytes:
        return _range(self._directory / listed(self.names, name), start, size)


def read_local(directory: Path) -> ModelHeaders:
    """Raises Unreadable for everything that is wrong with the files."""
    if not directory.is_dir():
        raise Unreadable("model_not_found", f"{directory.name} is not a directory")
    names = _names(directory)

    def read_headers(shards: list[str]) -> Mapping[str, bytes]:
        headers, total = {}, 0
        for name in shards:
            headers[name] = _header(directory / name)
            total += len(headers[name])
            check_header_bytes(total)
        return headers

    def read_range(name: str, start: int, size: int) -> bytes:
        return _range(directory / name, start, size)

    return assemble(names, read_whole=partial(_whole, directory), read_headers=read_headers, read_range=read_range)


def read_local_text(directory: Path) -> TextFiles:
    """What says how rows become tokens. Raises Unreadable for everything that is wrong with the files."""
    if not directory.is_dir():
        raise Unreadable("model_not_found", f"{directory.name} is not a directory")
    read_tokenizer = partial(_whole, directory, most=LARGEST_TOKENIZER)
    return gather(_names(directory), read_whole=partial(_whole, directory), read_tokenizer=read_tokenizer)


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.is_file()]


def _whole(directory: Path, name: str, *, most: int = LARGEST_JSON) -> bytes:
    if (directory / name).stat().st_size > most:
        raise Unreadable("invalid_model", f"{name} is larger than {most} bytes")
    return (directory / name).read_bytes()


def _range(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as reader:
        reader.seek(max(0, start))
        return reader.read(min(size, PIECE))


def _header(path: Path) -> bytes:
    with path.open("rb") as reader:
        length = header_length(path.name, reader.read(8))
        header = reader.read(length)
    if len(header) != length:
        raise Unreadable("invalid_model", f"{path.name}: truncated within its header")
    return header
