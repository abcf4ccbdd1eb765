"""The names, types and shapes of a model's tensors: config.json, the index, and the first bytes of every shard.

Every length that a file claims is checked before anything is made of it. How the bytes come here is the caller's
business: ``local.py`` reads a directory, ``hub.py`` asks the Hugging Face Hub for ranges.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quant_experts.planning.companions import missing_companions
from quant_experts.planning.errors import Unreadable

CONFIG = "config.json"
IMAGE_PROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
VIDEO_PROCESSOR = "video_preprocessor_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

LARGEST_HEADER = 25_000_000
"""Bytes; what the hub's own client takes. The 1 000 tensors of a 72B model need a tenth of a megabyte."""
LARGEST_JSON = 25_000_000
MOST_SHARDS = 2000
MOST_HEADER_BYTES = 100_000_000
"""Of all shards together."""

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "F32": 4,
    "I64": 8,
    "F64": 8,
}
FLOATS = ("F32", "F16", "BF16")
HEADS = (
    "lm_head.weight",
    "language_model.lm_head.weight",
    "language_model.output.weight",
    "text_model.lm_head.weight",
    "model.llm.unembed.weight",
    "proj_out.weight",
    "embed_out.weight",
    "head.weight",
)
EMBEDDINGS = (
    *("embed_tokens.weight", "tok_embeddings.weight"),
    *("wte.weight", "embed_in.weight", "word_embeddings.weight", "token_embedding.weight", "tokens_embed.weight"),
    *("llm.embed.weight", "wte.embedding"),
    *("backbone.embeddings.weight", "rwkv.embeddings.weight", "transformer.embeddings.weight", "transformer.w.weight"),
)
MORE_EMBEDDINGS = "wte.new_embedding"
"""End of the name of a second table, of tokens beyond the first."""
PIECE, PIECES = 32 * 1024, 4
"""Of the output head and the embeddings, that are compared: bytes, and how many pieces."""


@dataclass(frozen=True)
class Tensor:
    """One tensor as a file announces it. ``dtype``: the name that safetensors gives it. ``start``: its first byte,
    counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int = field(default=0, compare=False)

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.values * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class ModelHeaders:
    """``tensors``: key on disk → tensor, in the order of the index. ``commit``: of a hub model. ``bytes``: of all
    tensors. ``files``: how many shards. ``own_head``: the files hold an output head that is not the embeddings,
    whatever config.json says."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    files: int
    processor: Mapping[str, Any]
    """preprocessor_config.json over processor_config.json, empty where there is neither that can be read."""
    commit: str | None = None
    own_head: bool = False
    missing: tuple[str, ...] = ()
    """What the run needs beside the weights and does not find."""

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors.values())


def assemble(
    names: Iterable[str],
    *,
    read_whole: Callable[[str], bytes],
    read_headers: Callable[[list[str]], Mapping[str, bytes]],
    read_range: Callable[[str, int, int], bytes],
    commit: str | None = None,
) -> ModelHeaders:
    """The headers of the model whose files are called ``names``.

    ``read_whole``: the bytes of a small file, at most LARGEST_JSON; ``read_headers``: shard → its safetensors header;
    ``read_range``: shard, first byte, number of bytes → those bytes.
    As transformers chooses: a single file goes before an index beside it, and of the shards that an index names every
    tensor counts.
    Raises Unreadable naming the file and what is wrong with it.
    """
    present = set(names)
    if CONFIG not in present:
        raise Unreadable("invalid_model", "the model has no config.json; give a model as a hub repository has it")
    config = json_object(CONFIG, read_whole(CONFIG))
    weight_map: dict[str, str] = {}
    if SINGLE in present:
        shards = [SINGLE]
    elif INDEX in present:
        weight_map = _weight_map(read_whole(INDEX))
        shards = sorted(set(weight_map.values()))
        missing = [name for name in shards if name not in present]
        if missing:
            raise Unreadable("invalid_model", f"shard {missing[0]} is missing although {INDEX} names it")
        if len(shards) > MOST_SHARDS:
            raise Unreadable("invalid_model", f"{INDEX} names {len(shards)} shards; more than {MOST_SHARDS}")
    else:
        pickles = sorted(name for name in present if name.endswith(PICKLES))
        reason = (
            f"pickle weights only ({pickles[0]}), which are never loaded"
            if pickles
            else f"neither {SINGLE} nor {INDEX}"
        )
        raise Unreadable("invalid_model", f"the model holds {reason}; safetensors are needed")
    headers = read_headers(shards)
    shard_tensors = {name: parse_header(name, headers[name]) for name in shards}
    for key, shard in weight_map.items():
        _check_promised(shard_tensors, key, shard)
    where = {key: shard for shard in shards for key in shard_tensors[shard]}
    tensors = {key: shard_tensors[shard][key] for key, shard in where.items()}

    def read(key: str, start: int, size: int) -> bytes:
        shard = where[key]
        return read_range(shard, 8 + len(headers[shard]) + tensors[key].start + start, size)

    own_head = not _is_untied(config) and has_own_head(tensors, read)
    absent_files = missing_companions(config, present, lambda name: json_object(name, read_whole(name)))
    return ModelHeaders(config, tensors, len(shards), processor_of(present, read_whole), commit, own_head, absent_files)


def processor_of(present: Collection[str], read_whole: Callable[[str], bytes]) -> dict[str, Any]:
    """Settings of the model's image processor, from whichever files hold them; those of a video processor in
    ``video_processor``, which without any takes those of images. They only make an estimate better: a
    file that cannot be read counts as absent."""

    def read(name: str) -> dict[str, Any]:
        try:
            return json_object(name, read_whole(name)) if name in present else {}
        except Unreadable:
            return {}

    whole = read(PROCESSOR)
    images = whole.pop("image_processor", None)  # where transformers 5 writes it, and looks first
    videos = whole.pop("video_processor", None)
    videos = videos if isinstance(videos, dict) else read(VIDEO_PROCESSOR)
    of_videos = {"video_processor": videos} if videos else {}
    return {**whole, **(images if isinstance(images, dict) else read(IMAGE_PROCESSOR)), **of_videos}


def header_length(name: str, first: bytes) -> int:
    """Bytes of the header that follows the first eight. Raises Unreadable for a length that no header has."""
    length = struct.unpack("<Q", first[:8])[0] if len(first) >= 8 else 0
    if not 2 <= length <= LARGEST_HEADER:
        raise Unreadable("invalid_model", f"{name}: not a safetensors file, or truncated (a header of {length} bytes)")
    return int(length)


def parse_header(name: str, header: bytes) -> dict[str, Tensor]:
    """The tensors that a header announces. Raises Unreadable naming the first that cannot be."""
    description = json_object(name, header)
    description.pop("__metadata__", None)
    return {key: _tensor(name, key, fields) for key, fields in description.items()}


def _tensor(name: str, key: str, fields: Any) -> Tensor:
    try:
        dtype, shape, (start, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
        natural = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (KeyError, TypeError, ValueError):
        raise Unreadable(
            "invalid_model", f"{name}: tensor {key!r} is not described as the safetensors format demands"
        ) from None
    if dtype not in ITEM_BYTES:
        raise Unreadable("invalid_model", f"{name}: tensor {key} has the dtype {dtype!r}, which is not supported")
    tensor = Tensor(dtype, shape, start)
    if not natural or len(shape) > 16 or end - start != tensor.bytes:
        raise Unreadable("invalid_model", f"{name}: tensor {key} of shape {list(shape)} does not fill its bytes")
    return tensor


def _check_promised(shard_tensors: Mapping[str, Mapping[str, Tensor]], key: str, shard: str) -> None:
    if key not in shard_tensors[shard]:
        raise Unreadable("invalid_model", f"{INDEX} says that {shard} holds {key}, but it does not")


def _is_untied(config: Mapping[str, Any]) -> bool:
    """Whether config.json itself says so: then there is nothing to find out."""
    parts = (config, config.get("text_config"), config.get("llm_config"))
    flags = (part["tie_word_embeddings"] for part in parts if isinstance(part, dict) and "tie_word_embeddings" in part)
    return next(flags, None) is False


def has_own_head(tensors: Mapping[str, Tensor], read_range: Callable[[str, int, int], bytes]) -> bool:
    """Whether the files hold an output head that differs from the embeddings, told from some pieces of both.

    ``read``: key, first byte within the tensor, number of bytes → those bytes.
    """
    head = next((key for key in HEADS if key in tensors), None)
    embeddings = next((key for key in tensors if key.endswith(EMBEDDINGS)), None)
    if head is None or embeddings is None:
        return False
    one, other = tensors[head], tensors[embeddings]
    if one != other:
        return True
    last = max(0, one.bytes - PIECE)
    return any(
        read_range(head, start, min(PIECE, one.bytes)) != read_range(embeddings, start, min(PIECE, one.bytes))
        for start in sorted({last * place // (PIECES - 1) for place in range(PIECES)})
    )


def _weight_map(text: bytes) -> dict[str, str]:
    weight_map = json_object(INDEX, text).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Unreadable("invalid_model", f"{INDEX} has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors", shard) is None:
            raise Unreadable("invalid_model", f"{INDEX} names {shard!r}: shards are safetensors files beside the index")
    return weight_map


def json_object(name: str, text: bytes) -> dict[str, Any]:
    """The content of the file ``name``. Raises Unreadable naming it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable("invalid_model", f"{name} cannot be read: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise Unreadable("invalid_model", f"{name} is not a JSON object")
    return content


def check_header_bytes(total: int) -> None:
    """``total``: of all shards together. Raises Unreadable beyond the bound."""
    if total > MOST_HEADER_BYTES:
        raise Unreadable("invalid_model", f"the headers of all shards exceed {MOST_HEADER_BYTES} bytes")


def listed(names: Collection[str], name: str) -> str:
    """``name`` itself. Raises Unreadable when the model has no such file."""
    if name not in names:
        raise Unreadable("invalid_model", f"the model has no file {name!r}")
    return name
