"""Copy tensors from several files into shards of bounded size, with one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from quant_experts.model.tensor_file import TensorFile, tensor_bytes, write_tensors, write_text
from quant_experts.planning.headers import INDEX
from quant_experts.progress import WrittenFile

SHARD_BYTES = 5_000_000_000


class Readable(Protocol):
    """A tensor that is read when it is written, so that one at a time is in memory."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def bytes(self) -> int: ...
    def read(self) -> Tensor: ...


@dataclass(frozen=True)
class TensorSource:
    """One tensor in a file. ``start``: its first byte."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    bytes: int

    def read(self) -> Tensor:
        """The tensor, on the CPU, in memory of its own. Raises OSError when the file has become shorter."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb") as reader:
            reader.seek(self.start)
            if reader.readinto(tensor_bytes(tensor)) != self.bytes:
                raise OSError(f"{self.path}: ends within the tensor at byte {self.start}")
        return tensor


def stored_tensors(path: Path) -> dict[str, TensorSource]:
    """The tensors of a safetensors file, by name. Raises InvalidModel when the file is not whole."""
    entries = TensorFile(path).entries
    return {
        name: TensorSource(path, entry.dtype, entry.shape, entry.start, entry.bytes) for name, entry in entries.items()
    }


def spool(tensors: Iterable[tuple[str, Tensor]], path: Path) -> dict[str, TensorSource]:
    """Append tensors to one raw file as they come. The shards need all names and sizes before their first byte."""
    sources: dict[str, TensorSource] = {}
    with path.open("wb") as out:
        for name, tensor in tensors:
            start = out.tell()
            tensor = tensor.detach().cpu().contiguous()
            out.write(tensor_bytes(tensor))
            sources[name] = TensorSource(path, tensor.dtype, tuple(tensor.shape), start, out.tell() - start)
    return sources


def write_shards(
    tensors: Mapping[str, Readable], directory: Path, *, shard_bytes: int = SHARD_BYTES
) -> list[WrittenFile]:
    """Write ``model-0000n-of-0000N.safetensors`` and their index, in the order of ``tensors``; return the files.

    No shard is larger than ``shard_bytes`` unless one tensor alone is.
    """
    shards = list(_shards(tensors, shard_bytes))
    files, weight_map = [], {}
    for n, names in enumerate(shards, start=1):
        file_name = f"model-{n:05d}-of-{len(shards):05d}.safetensors"
        # Wide dtypes first, as the safetensors library does: every tensor then starts at a multiple of its item size.
        names = sorted(names, key=lambda name: (-tensors[name].dtype.itemsize, name))
        layout = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
        files.append(write_tensors(directory / file_name, layout, ((name, tensors[name].read()) for name in names)))
        weight_map.update(dict.fromkeys(names, file_name))
    index = {
        "metadata": {"total_size": sum(tensor.bytes for tensor in tensors.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return [*files, write_text(directory / INDEX, json.dumps(index, indent=2) + "\n")]


def _shards(tensors: Mapping[str, Readable], shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.bytes > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.bytes
    if names:
        yield names
