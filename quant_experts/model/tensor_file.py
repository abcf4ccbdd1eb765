"""Safetensors files read and written one tensor at a time, through plain file reads.

Not the ``safetensors`` library's memory map: pages of a mapped shard count as resident memory for as long as the map
lives, so that a walk over a 100 GB model would look as if it held the model. Here a tensor occupies memory only while
somebody holds it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_experts.crash_points import reach
from quant_experts.errors import InvalidModel
from quant_experts.files import sync_directory
from quant_experts.progress import WrittenFile

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

LARGEST_HEADER = 100 << 20
"""Bytes; the format's own bound."""
PIECE = 16 << 20
"""Bytes."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies. ``start`` and ``end``: bytes from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


class TensorFile:
    """One safetensors file whose header has been checked: every tensor lies inside it and has the size it claims."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidModel, naming the file, when it is not a whole safetensors file."""
        self.path = path
        self.entries, self.metadata = _read_header(path)

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, in memory of its own. Raises KeyError for a name that the file does not hold."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if entry.bytes:
            with self.path.open("rb", buffering=0) as reader:
                reader.seek(entry.start)
                _read_into(reader, tensor_bytes(tensor), f"{self.path.name}: tensor {name}")
        return tensor

    def holds_same(self, name: str, other: TensorFile, other_name: str) -> bool:
        """Whether the bytes of both tensors are the same; a piece of them in memory at a time."""
        entry, other_entry = self.entries[name], other.entries[other_name]
        if (entry.dtype, entry.shape) != (other_entry.dtype, other_entry.shape):
            return False
        with self.path.open("rb") as first, other.path.open("rb") as second:
            first.seek(entry.start)
            second.seek(other_entry.start)
            for start in range(0, entry.bytes, PIECE):
                size = min(PIECE, entry.bytes - start)
                if first.read(size) != second.read(size):
                    return False
        return True


class TensorWriter:
    """A safetensors file whose tensors are produced while it is written, in the order of ``layout``.

    The file appears whole or not at all: temporary name, fsync, rename.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._layout_rest = iter(layout.items())
        self._digest = hashlib.sha256()
        self._position = 0
        self._out = self._part.open("wb")
        self._put(_header(layout))

    def add(self, name: str, tensor: Tensor) -> None:
        """Raises ValueError when it is not the tensor that ``layout`` announces next."""
        expected_name, (dtype, shape) = next(self._layout_rest, ("nothing", (None, None)))
        if (name, tensor.dtype, tuple(tensor.shape)) != (expected_name, dtype, shape):
            raise ValueError(
                f"{self._path.name}: {name} {tensor.dtype} {tuple(tensor.shape)} came where {expected_name} was due"
            )
        self._put(tensor_bytes(tensor.detach().cpu().contiguous()))

    def finish(self) -> WrittenFile:
        """Name, size and digest. Raises ValueError when an announced tensor never came."""
        rest = next(self._layout_rest, None)
        if rest is not None:
            raise ValueError(f"{self._path.name}: tensor {rest[0]} was announced and never came")
        with self._out:
            self._out.flush()
            reach("tensors.written")
            os.fsync(self._out.fileno())
        reach("tensors.synced")
        self._part.replace(self._path)
        reach("tensors.renamed")
        sync_directory(self._path.parent)
        return WrittenFile(self._path.name, self._position, self._digest.hexdigest())

    def discard(self) -> None:
        """What is not finished is gone."""
        self._out.close()
        self._part.unlink(missing_ok=True)

    def _put(self, data: Any) -> None:
        self._out.write(data)
        self._digest.update(data)
        self._position += len(data)


def write_tensors(
    path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensors: Iterable[tuple[str, Tensor]]
) -> WrittenFile:
    """Write a whole safetensors file; see ``TensorWriter``."""
    writer = TensorWriter(path, layout)
    try:
        for name, tensor in tensors:
            writer.add(name, tensor)
        return writer.finish()
    finally:
        writer.discard()


def write_text(path: Path, text: str) -> WrittenFile:
    """A small file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    data = text.encode()
    with part.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
    sync_directory(path.parent)
    return WrittenFile(path.name, len(data), hashlib.sha256(data).hexdigest())


def json_digest(content: object) -> str:
    """SHA-256 of ``content`` as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _header(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    description: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        description[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(description, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    size = path.stat().st_size
    with path.open("rb") as reader:
        prefix = reader.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise InvalidModel(f"{path.name}: not a safetensors file, or truncated ({size} bytes, header of {length})")
        text = reader.read(length)
    try:
        description = json.loads(text)
        metadata = description.pop("__metadata__", {})
        entries = {name: _entry(path, name, fields, 8 + length) for name, fields in description.items()}
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise InvalidModel(
            f"{path.name}: the safetensors header cannot be read ({type(error).__name__}: {error})"
        ) from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise InvalidModel(
                f"{path.name}: tensor {name} does not follow the one before it (byte {entry.start}, not {end})"
            )
        end = entry.end
    if end != size:
        problem = "truncated" if end > size else "followed by bytes that belong to no tensor"
        raise InvalidModel(
            f"{path.name}: {problem}: the header describes {end} bytes, the file has {size}; download it again"
        )
    return entries, metadata


def _entry(path: Path, name: str, fields: dict[str, Any], base: int) -> Entry:
    if fields["dtype"] not in DTYPES:
        raise InvalidModel(f"{path.name}: tensor {name} has the dtype {fields['dtype']!r}, which is not supported")
    dtype = DTYPES[fields["dtype"]]
    shape = tuple(fields["shape"])
    start, end = fields["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, end)):
        raise InvalidModel(f"{path.name}: tensor {name} has a shape or offsets that are not natural numbers")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise InvalidModel(f"{path.name}: tensor {name} of shape {list(shape)} does not fill its {end - start} bytes")
    return Entry(dtype, shape, base + start, base + end)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, not copied."""
    if not tensor.numel():
        return memoryview(bytearray())
    flat: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _read_into(reader: Any, view: memoryview, what: str) -> None:
    offset = 0
    while offset < len(view):
        count = reader.readinto(view[offset:])
        if not count:
            raise InvalidModel(f"{what}: the file ended {len(view) - offset} bytes early")
        offset += count


class TensorSpool:
    """Collects tensors whose shapes are not known beforehand, on disk, and makes one tensor file of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spool = path.with_name(f".{path.name}.spool")
        self._layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._out = self._spool.open("w+b")

    def add(self, name: str, tensor: Tensor) -> None:
        if name in self._layout:
            raise ValueError(f"{self._path.name}: tensor {name} is there already")
        self._layout[name] = (tensor.dtype, tuple(tensor.shape))
        self._out.write(tensor_bytes(tensor.detach().cpu().contiguous()))

    def finish(self) -> WrittenFile:
        """Write the tensor file and remove the spool."""
        self._out.seek(0)
        file = write_tensors(self._path, self._layout, self._replay())
        self.discard()
        return file

    def discard(self) -> None:
        self._out.close()
        self._spool.unlink(missing_ok=True)

    def _replay(self) -> Iterator[tuple[str, Tensor]]:
        for name, (dtype, shape) in self._layout.items():
            tensor = torch.empty(shape, dtype=dtype)
            _read_into(self._out, tensor_bytes(tensor), f"{self._path.name}: tensor {name}")
            yield name, tensor
