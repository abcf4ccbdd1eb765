"""Files of rows as people have them: JSON Lines, or one JSON list over many lines; gzip or not; with a byte order mark.

``raw_rows`` cuts such a file into the bytes of its rows, with the memory of one row. Parquet is read elsewhere.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os.path
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from quant_experts.spec.limits import MOST_MEDIA_BYTES

MARK = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
CHUNK = 1 << 20
MOST_ROW_BYTES = 256 << 20
IN_STRING, OUTSIDE = re.compile(rb'["\\]'), re.compile(rb'["\[\]{},]')
WRITE = "write one JSON object per line, one JSON list of them, or Parquet"
OTHER_FILES = {
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"ARROW1": "an Arrow file: save it as Parquet",
    b"\xff\xff\xff\xff": "an Arrow stream: save it as Parquet",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it, or use gzip",
    b"BZh": "packed with bzip2: unpack it, or use gzip",
    b"\xfd7zXZ": "packed with xz: unpack it, or use gzip",
    b"SQLite format 3": f"an SQLite database: {WRITE}",
    b"\x89HDF": f"an HDF5 file: {WRITE}",
    b"\x89PNG": f"a single PNG image: {WRITE}",
    b"\xff\xd8\xff": f"a single JPEG image: {WRITE}",
}


class UnreadableFile(ValueError):
    """No file of rows; the message says what it is and what to write instead, without the file's name."""


class UnreadableRow(ValueError):
    """A row that cannot be parsed; the message says why, without the row's number."""


@dataclass(frozen=True)
class RawRow:
    """``number``: the line of JSON Lines, or the place in a list, counted from 1. ``start``: of its first byte in the
    unpacked text. ``text``: an UnreadableRow where the file cannot be cut into rows any more; it is then the last."""

    number: int
    start: int
    text: bytes | UnreadableRow

    def parsed(self) -> Any:
        """Raises UnreadableRow; the message shows no bytes that are not text."""
        if isinstance(self.text, UnreadableRow):
            raise self.text
        return parsed(self.text)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's text, unpacked where it is gzip."""
    with path.open("rb") as file, unpacked(file) as text:
        yield text


@contextmanager
def unpacked(file: IO[bytes]) -> Iterator[IO[bytes]]:
    is_gzip = file.read(2) == GZIP
    file.seek(0)
    if not is_gzip:
        yield file
        return
    with gzip.open(file) as text:
        yield cast("IO[bytes]", text)


def starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def raw_rows(text: IO[bytes], *, most_row: int = MOST_ROW_BYTES, most: int | None = None) -> Iterator[RawRow]:
    """``most_row``: bytes of one; ``most``: of the unpacked text. Raises UnreadableFile."""
    source = _Source(text, most)
    try:
        source.more(1 << 16)
        mark = len(MARK) if source.buffer.startswith(MARK) else 0
        yield from (_elements if _is_list(source.buffer) else _lines)(source, mark, most_row)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableFile(f"the gzip file is cut off or damaged ({error})") from None


def _is_list(head: bytes | bytearray) -> bool:
    """Of a text whose first bytes are these. Raises UnreadableFile for what is neither a list nor lines."""
    what = next((what for magic, what in OTHER_FILES.items() if head.startswith(magic)), None)
    if what is not None:
        raise UnreadableFile(f"the file is {what}")
    text = head.removeprefix(MARK).lstrip()
    if text.split(b"\n", 1)[0].strip() == b"{":
        raise UnreadableFile(f"the file is one JSON object over many lines: {WRITE}")
    return text.startswith(b"[")


def parsed(text: bytes) -> Any:
    """Raises UnreadableRow; the message shows no bytes that are not text."""
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnreadableRow(f"not UTF-8 (byte {error.start + 1} of {len(text)})") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} at character {error.pos + 1} of {len(text)} bytes"
        raise UnreadableRow(f"not JSON ({where}){_beginning(error.doc)}") from None
    except RecursionError:
        raise UnreadableRow("not JSON that can be read (nested too deeply)") from None
    except ValueError:  # an integer of more than 4300 digits
        raise UnreadableRow("not JSON (a number too long to read)") from None


def _beginning(text: str) -> str:
    """Of what has not even the form of a row, as a line of CSV, where it is text."""
    line = text.strip()[:40]
    return "" if line.startswith(("{", "[")) or not line.isprintable() else f"; it begins with {line!r}: {WRITE}"


class _Source:
    """``buffer``: what was read of the text and is still needed; ``start``: where in the text that begins."""

    def __init__(self, text: IO[bytes], most: int | None) -> None:
        self._text, self._most = text, most
        self.buffer = bytearray()
        self.start = 0

    def more(self, size: int = CHUNK) -> bool:
        """Whether there was any."""
        chunk = self._text.read(size)
        self.buffer += chunk
        if self._most is not None and self.start + len(self.buffer) > self._most:
            raise UnreadableFile(f"the file unpacks to more than {self._most} bytes")
        return bool(chunk)

    def drop(self, size: int) -> None:
        del self.buffer[:size]
        self.start += size


def _lines(source: _Source, at: int, most: int) -> Iterator[RawRow]:
    """Empty lines are passed over, and counted."""
    start = at  # of the line in hand; up to ``at`` it is known to have no end
    for number in itertools.count(1):
        while (end := source.buffer.find(b"\n", at)) < 0:
            source.drop(start)
            start, at = 0, len(source.buffer)
            if at > most:
                yield RawRow(number, source.start, UnreadableRow(f"longer than {most >> 20} MiB"))
                return
            if not source.more():
                if source.buffer.strip():
                    yield RawRow(number, source.start, bytes(source.buffer))
                return
        line = bytes(source.buffer[start:end])
        if line.strip():
            yield RawRow(number, source.start + start, line)
        start = at = end + 1


def _elements(source: _Source, at: int, most: int) -> Iterator[RawRow]:
    """Of the list with which the text begins."""
    numbers = itertools.count(1)
    at = start = source.buffer.index(b"[", at) + 1
    depth, in_string = 1, False
    while depth:
        match = (IN_STRING if in_string else OUTSIDE).search(source.buffer, at)
        if match is None:
            at = max(at, len(source.buffer)) - start
            source.drop(start)
            start = 0
            if len(source.buffer) > most or not source.more():
                long = f"longer than {most >> 20} MiB"
                reason = long if len(source.buffer) > most else "the file ends before its list does: is it whole?"
                yield RawRow(next(numbers), source.start, UnreadableRow(reason))
                return
            continue
        at, mark = match.end(), match.group()
        if mark == b"\\":
            at += 1
        elif mark == b'"':
            in_string = not in_string
        else:
            depth += {b"[": 1, b"{": 1, b",": 0}.get(mark, -1)
        if depth == 0 or (depth == 1 and mark == b","):
            element = bytes(source.buffer[start : match.start()])
            if element.strip() or depth:
                yield RawRow(next(numbers), source.start + start, element)
            start = at
    source.drop(start)
    while source.buffer or source.more():
        if source.buffer.strip():
            yield RawRow(next(numbers), source.start, UnreadableRow("there is more after the end of the list"))
            return
        source.buffer.clear()


def file_beside(base: Path, source: str, *, follow_links: bool = True) -> Path:
    """The file that a row names, relative to the directory ``base`` of its file of rows, which it may not leave;
    ``follow_links``: by a link it may. Raises UnreadableRow."""
    if "\x00" in source or Path(source).is_absolute():
        raise UnreadableRow(f"{shown(source)} must be a path relative to the calibration file")
    path = base / os.path.normpath(source)
    climbs = path.parts[len(base.parts) : len(base.parts) + 1] == ("..",)
    if climbs or not (follow_links or path.resolve().is_relative_to(base.resolve())):
        instead = "; put the images beside it, or a link to their directory" if follow_links else ""
        raise UnreadableRow(f"{shown(source)} leaves the directory of the calibration file{instead}")
    try:
        if not path.is_file():
            raise UnreadableRow(f"{shown(source)} does not exist beside the calibration file")
        if path.stat().st_size > MOST_MEDIA_BYTES:
            raise UnreadableRow(f"{path.stat().st_size} bytes, at most {MOST_MEDIA_BYTES} are accepted")
    except OSError as error:
        raise UnreadableRow(f"{shown(source)} cannot be read ({error.strerror})") from error
    return path


def shown(value: Any) -> str:
    """A value in a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
