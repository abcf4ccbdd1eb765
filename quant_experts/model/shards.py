"""The safetensors files of a model directory: checked before anything runs, read tensor by tensor."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quant_experts.errors import InvalidModel
from quant_experts.model.tensor_file import TensorFile
from quant_experts.planning.headers import INDEX, SINGLE

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Shards:
    """The checked safetensors of a model directory. ``where``: key on disk → the file that holds it."""

    directory: Path
    files: tuple[TensorFile, ...]
    where: dict[str, TensorFile]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(file.entries[key].bytes for key, file in self.where.items())

    def read(self, key: str) -> Tensor:
        return self.where[key].read(key)


def open_shards(directory: Path) -> Shards:
    """Check the headers of every shard. Nothing but headers is read.

    As transformers chooses: a single file goes before an index beside it, and of the shards that an index names every
    tensor counts, whether the index lists it or not; of a tensor in two of them the last.
    Raises InvalidModel, naming the file: no safetensors, a missing or truncated shard, an index that does not fit them.
    """
    index = directory / INDEX
    if (directory / SINGLE).is_file():
        file = TensorFile(directory / SINGLE)
        return Shards(directory, (file,), dict.fromkeys(file.entries, file))
    if index.is_file():
        weight_map = _weight_map(index)
        files = {name: _open(directory, name, index.name) for name in sorted(set(weight_map.values()))}
        for key, name in weight_map.items():
            if key not in files[name].entries:
                raise InvalidModel(
                    f"{index.name} says that {name} holds {key}, but it does not; download the model again"
                )
        where = {key: file for file in files.values() for key in file.entries}
        return Shards(directory, tuple(files.values()), where)
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise InvalidModel(
            f"{directory.name} holds pickle weights only ({pickles[0]}), which are never loaded; convert to safetensors"
        )
    raise InvalidModel(f"{directory.name} holds neither {SINGLE} nor {INDEX}")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError("no weight_map")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModel(f"{index.name} cannot be read: {error}") from error
    return dict(weight_map)


def _open(directory: Path, name: str, index: str) -> TensorFile:
    if name != Path(name).name or not name.endswith(".safetensors"):
        raise InvalidModel(f"{index} names {name!r}: shards are safetensors files beside the index")
    if not (directory / name).is_file():
        raise InvalidModel(f"shard {name} is missing although {index} names it; download the model again")
    return TensorFile(directory / name)


def shards_fingerprint(shards: Shards, config: str) -> str:
    """A digest that tells this model from another: configuration, headers and samples of every shard.

    Not a digest of all bytes: that would read a 145 GB model twice. Each file contributes its layout and three
    megabytes from its beginning, middle and end.
    """
    digest = hashlib.sha256(config.encode())
    for file in shards.files:
        size = file.path.stat().st_size
        digest.update(repr((file.path.name, size, sorted(file.entries.items()))).encode())
        with file.path.open("rb") as reader:
            for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
                reader.seek(start)
                digest.update(reader.read(SAMPLE_BYTES))
    return digest.hexdigest()
