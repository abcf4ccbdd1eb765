"""What a stack of blocks is called with for every calibration row, on disk.

What runs before its blocks runs once per row; afterwards every block of the walk replays these calls.
``calls.safetensors`` holds the tensors, ``calls.json`` how they make up the arguments. A stack behind another one has
files of its own (``crossing.py``), in which each stream of hidden states has calls of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_experts.calibration.collate import Sample
from quant_experts.calibration.image_variants import Change, Variant
from quant_experts.model.block_runner import Arguments
from quant_experts.model.tensor_file import TensorFile, TensorSpool, file_digest, write_text
from quant_experts.progress import WrittenFile

FIRST = "calls"
"""Stem of the files of the first stack's calls."""
PROBES = 1
"""Held-out rows whose model inputs are kept, to try the written checkpoint with."""

Stream = str
"""``quantized``, ``full``, ``baseline``; while sensitivity is measured, names of input groups too."""
"""Behind the quantized prefix; of the full-precision model; behind the prefix rounded to nearest."""


@dataclass(frozen=True)
class Call:
    """One row. ``number``: of the calibration row; ``tree``: the arguments, with names in place of tensors, None for a
    row that the stack is not called for; ``digest``: of the model inputs, equal for rows with the same text and images.
    ``tokens``, ``tokens_vision``: of the last stack, whichever this one is.
    """

    index: int
    number: int
    held_out: bool
    tokens: int
    tokens_vision: int
    tree: Any
    digest: str
    probe: dict[str, str] | None = None
    """Model input → tensor name: for the first held-out rows, or for all where another stack follows."""
    variant_of: int | None = None
    """Index of the held-out row that this one is, but for its images."""
    change: Change | None = None
    streams: dict[str, Any] | None = None
    """Stream → arguments, of a stack behind another one; ``tree`` is that of the quantized stream then."""
    question: str = ""
    reply: int = 0
    """As in Sample."""


@dataclass(frozen=True)
class Calls:
    """All rows of a run, and how they call one stack. The held-out ones come first.

    ``first``: number of the walked block with which the stack begins.
    ``variants`` are no rows: held-out rows with other images, which nothing is fitted or measured on but how the model
    reacts to images.
    """

    rows: tuple[Call, ...]
    skipped: dict[str, int]
    resized: int
    tensors: TensorFile
    files: tuple[WrittenFile, ...]
    variants: tuple[Call, ...] = ()
    first: int = 0

    @property
    def running(self) -> Calls:
        """Without the rows that the stack is not called for."""
        rows, variants = (tuple(c for c in calls if c.tree is not None) for calls in (self.rows, self.variants))
        return replace(self, rows=rows, variants=variants)

    @property
    def fit(self) -> tuple[Call, ...]:
        return tuple(call for call in self.rows if not call.held_out)

    @property
    def held_out(self) -> tuple[Call, ...]:
        return tuple(call for call in self.rows if call.held_out)

    def arguments(self, call: Call, device: torch.device, stream: Stream = "quantized") -> Arguments:
        tree = call.tree if call.streams is None or stream == "quantized" else call.streams[stream]
        built: Arguments = self._build(tree, device)
        return built

    def embeddings(self, call: Call, stream: Stream = "quantized") -> Tensor:
        """What the first block begins with, (1, tokens, d) in the model's dtype, on the CPU. Raises KeyError for a
        stream that the call does not have."""
        return self.tensors.read(f"{stream_prefix(call, stream)}{call.index}.embeddings")

    def vision(self, call: Call) -> Tensor:
        """(tokens,) bool: the image placeholders, of the last stack's tokens."""
        return self.tensors.read(f"{call.index}.vision")

    def input_ids(self, call: Call) -> Tensor:
        """(tokens,) int64."""
        return self.tensors.read(f"{call.index}.input_ids")

    def probe(self, call: Call) -> dict[str, Tensor] | None:
        """What the whole model is called with for this row, where it was kept."""
        if call.probe is None:
            return None
        return {name: self.tensors.read(stored) for name, stored in call.probe.items()}

    def _build(self, tree: Any, device: torch.device) -> Any:
        kind, value = next(iter(tree.items()))
        if kind == "tensor":
            return self.tensors.read(value).to(device)
        if kind == "list":
            return [self._build(element, device) for element in value]
        if kind == "dict":
            return {name: self._build(element, device) for name, element in value.items()}
        return value


class CallWriter:
    """Collects the calls of a run; nothing is visible until :meth:`finish`."""

    def __init__(self, directory: Path, *, keep_inputs: bool = False) -> None:
        """``keep_inputs``: of every row, for a model in which another stack follows."""
        self._directory = directory
        self._spool = TensorSpool(directory / call_files(FIRST)[0])
        self._keep_inputs = keep_inputs
        self.rows: list[Call] = []
        self.variants: list[Call] = []

    def add(self, sample: Sample, called: tuple[Arguments, Tensor] | None, *, held_out: bool) -> None:
        """One row; all rows come before the first variant. ``called``: arguments and embeddings, None when the row
        does not call the stack."""
        index = len(self.rows)
        assert not self.variants, "rows come first, so that variants have the indices behind them"
        probe = self._probe(index, sample.inputs) if (held_out and index < PROBES) or self._keep_inputs else None
        self.rows.append(replace(self._call(index, sample, called), held_out=held_out, probe=probe))

    def add_variant(self, sample: Sample, called: tuple[Arguments, Tensor] | None, variant: Variant) -> None:
        index = len(self.rows) + len(self.variants)
        probe = self._probe(index, sample.inputs) if self._keep_inputs else None
        call = replace(self._call(index, sample, called), probe=probe)
        self.variants.append(replace(call, variant_of=variant.original, change=variant.change))

    def _call(self, index: int, sample: Sample, called: tuple[Arguments, Tensor] | None) -> Call:
        if called is not None:
            self._spool.add(f"{index}.embeddings", called[1])
        self._spool.add(f"{index}.vision", sample.vision)
        self._spool.add(f"{index}.input_ids", sample.input_ids[0])
        tree = None if called is None else dismantle(self._spool, f"{index}.arguments", called[0])
        vision = int(sample.vision.sum())
        call = Call(index, sample.row, False, sample.tokens, vision, tree, _digest(sample.inputs))
        return replace(call, question=sample.question, reply=sample.reply)

    def finish(self, *, fingerprint: str, skipped: Mapping[str, int], resized: int) -> Calls:
        return finish_calls(
            self._directory,
            FIRST,
            self._spool,
            rows=self.rows,
            variants=self.variants,
            skipped=skipped,
            resized=resized,
            fingerprint=fingerprint,
        )

    def discard(self) -> None:
        self._spool.discard()

    def _probe(self, index: int, inputs: Mapping[str, Tensor]) -> dict[str, str]:
        names = {name: f"{index}.probe.{name}" for name in inputs}
        for name, stored in names.items():
            self._spool.add(stored, inputs[name])
        return names


def tokens_of(rows: Sequence[Call]) -> tuple[int, int]:
    """Of all rows together, and how many of them are images'."""
    return sum(call.tokens for call in rows), sum(call.tokens_vision for call in rows)


def call_files(stem: str) -> tuple[str, str]:
    """Names of the tensors and of the description, within the work directory."""
    return f"{stem}.safetensors", f"{stem}.json"


def stream_prefix(call: Call, stream: Stream) -> str:
    """Of the tensor names of a stream: one set serves all streams of a first stack."""
    return "" if call.streams is None or stream == "quantized" else f"{stream}."


def dismantle(spool: TensorSpool, name: str, value: Any) -> Any:
    """``value`` as JSON, with the tensors in ``spool`` under names that begin with ``name``."""
    if isinstance(value, Tensor):
        spool.add(name, value)
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return {"list": [dismantle(spool, f"{name}.{i}", element) for i, element in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": {key: dismantle(spool, f"{name}.{key}", element) for key, element in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"{name}: an argument of type {type(value).__name__} cannot be kept")


def finish_calls(
    directory: Path,
    stem: str,
    spool: TensorSpool,
    *,
    rows: Sequence[Call],
    variants: Sequence[Call],
    skipped: Mapping[str, int],
    resized: int,
    fingerprint: str,
    first: int = 0,
) -> Calls:
    """Make the spooled calls durable; the description comes last."""
    tensors = spool.finish()
    description = {
        "fingerprint": fingerprint,
        "tensors": asdict(tensors),
        "rows": [asdict(call) for call in rows],
        "variants": [asdict(call) for call in variants],
        "skipped": dict(skipped),
        "resized": resized,
    }
    names = call_files(stem)
    tree = write_text(directory / names[1], json.dumps(description, indent=1))
    file = TensorFile(directory / names[0])
    return Calls(tuple(rows), dict(skipped), resized, file, (tensors, tree), tuple(variants), first)


def read_calls(directory: Path, fingerprint: str, *, stem: str = FIRST, first: int = 0) -> Calls | None:
    """The calls that an earlier run left, or None when they are not whole or belong to another run."""
    tensors_name, tree_name = call_files(stem)
    try:
        text = (directory / tree_name).read_bytes()
        description = json.loads(text)
    except (FileNotFoundError, ValueError):
        return None
    tensors = WrittenFile(**description["tensors"])
    path = directory / tensors_name
    if description["fingerprint"] != fingerprint or not path.is_file() or file_digest(path) != tensors.sha256:
        return None
    rows, variants = (tuple(Call(**row) for row in description[kind]) for kind in ("rows", "variants"))
    tree = WrittenFile(tree_name, len(text), file_digest(directory / tree_name))
    files = (tensors, tree)
    return Calls(rows, description["skipped"], description["resized"], TensorFile(path), files, variants, first)


def _digest(inputs: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(inputs.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
